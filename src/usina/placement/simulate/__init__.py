"""Placement without a factory: hosts and requests from files, offered one by one, counted.

Everything here is pure: texts in, numbers out; the command reads the files and the clock.
"""

from usina.placement.simulate.experiment import Experiment, Point, Result, shuffled
from usina.placement.simulate.formats import hosts_of, hosts_text, requests_of

__all__ = ["Experiment", "Point", "Result", "hosts_of", "hosts_text", "requests_of", "shuffled"]
