"""Wire formats: each dialect of requests and answers read and written in one file, and found by its route."""
