"""A model so small that testing the machinery around it takes seconds, and rows that it can learn."""

from __future__ import annotations

from pathlib import Path

ROWS = [
    {"prompt": f"{frame} {thing}", "response": f"{thing}: {answer}"}
    for frame in ("where is my", "tell me about the", "the wrong", "no")
    for thing, answer in (("card", "on its way"), ("pin", "ask again"), ("refund", "in two days"), ("rate", "as today"))
    for frame in (frame, f"please, {frame}")
] * 2
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 512}


def make_tiny(folder: Path) -> None:
    """Write a Llama with seeded weights and a byte-level tokenizer."""
    import tokenizers
    import torch
    import transformers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*special.values()], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([text for row in ROWS for text in row.values()], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **special)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **SIZES, **ends)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
