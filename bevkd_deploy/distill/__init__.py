"""How a student learns: taps on both networks, losses between them, one training loop."""
