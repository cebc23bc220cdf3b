"""llama.cpp as a child process, and a vLLM joined at its address."""
