"""Is a request inside the domain of a task, and which task is it for?"""
