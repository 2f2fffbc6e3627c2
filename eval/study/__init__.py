"""Whether training with FPS attention pays: a small Wan, trained from nothing, with every row one command."""
