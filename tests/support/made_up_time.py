"""A clock that goes when it is told to."""


class Clock:
    """Seconds since it was made."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds
