"""Engines that run models, in one registry: PyTorch, llama.cpp, vLLM, linear, endpoint."""
