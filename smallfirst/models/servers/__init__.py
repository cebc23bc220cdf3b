"""llama.cpp and vLLM as child processes."""
