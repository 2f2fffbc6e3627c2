"""What is wrong with a video."""


class ClipError(ValueError):
    """A video file that can't be used; the message names it and says why."""


class Fault(Exception):
    """Why a video can't be used; whoever opened the file makes a ClipError with its name of it."""
