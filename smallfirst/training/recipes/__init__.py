"""What a fine-tune teaches: labels, chat, contrastive pairs, a teacher's probabilities."""
