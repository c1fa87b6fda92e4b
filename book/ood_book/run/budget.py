"""The budget of a run: which profiles keep it, what counts against it, and when a run is late or stopped."""

__all__ = ["PATIENCE", "PROMISED", "WARN", "counted"]

PROMISED = ("default", "quick")  # profiles with which a notebook keeps its budget of time
WARN = 3  # times its budget: from there on the run says that it takes too long
PATIENCE = 6  # times its budget: there it is stopped, if nobody says otherwise


def counted(wall: float, cpu: float) -> float:
    """What is held against the budget, of wall-clock and processor time.

    Example:
        >>> counted(wall=100, cpu=70), counted(wall=100, cpu=400), counted(wall=100, cpu=1)
        (70, 100, 50.0)
    """
    return max(min(wall, cpu), wall / 2)
