"""python -m fps_flex.weights convert SRC DST --format diffusers: Wan's weights for other tools; see wan/weights.py."""

from .wan.convert import main

if __name__ == "__main__":
    main()
