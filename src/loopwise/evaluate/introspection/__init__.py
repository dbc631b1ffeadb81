"""What a model's own samples and judgements say of its answers."""
