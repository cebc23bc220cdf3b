"""What runs a model: PyTorch, llama.cpp, vLLM, a linear classifier or an endpoint, found in one registry."""
