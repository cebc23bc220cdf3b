"""Write a model as safetensors or GGUF and compare the copy with the original."""
