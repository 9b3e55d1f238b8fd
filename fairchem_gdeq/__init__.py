"""Fine-tune a potential for structural relaxation, through its own relaxations."""
