"""The gradient search itself: steps of Adam on a few numbers, from one trial to the next. Pure.

A trial is a place of the descent that the whole objective judges, so that its value compares with any other search's.
Everything that the next step depends on is in the place's JSON, which is a trial's ``parameters``: a killed search goes
on from its last line and takes the same steps as one that was left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.search.forms import Form, Slope
from boom_ray.search.points import Point

_DECAY = (0.9, 0.999)  # of Adam's means (Kingma and Ba 2015, arXiv 1412.6980)
_EPSILON = 1e-8

Slopes = Callable[[Point, int], tuple[float, Slope]]  # (point, step) -> loss of that step's probe batch, its slope


@dataclass(frozen=True)
class Place:
    """A place of the descent and Adam's memory: parameters ``x``, means of gradients and of their squares, all [n].

    ``updates`` counts those that ``x`` has had; ``step`` counts probe batches, also those that led nowhere;
    ``losses`` are those of the probe batches since the last trial.
    """

    x: np.ndarray
    first: np.ndarray
    second: np.ndarray
    updates: int = 0
    step: int = 0
    losses: tuple[float, ...] = ()

    @classmethod
    def start(cls, form: Form) -> Place:
        x = form.start()
        return cls(x, np.zeros_like(x), np.zeros_like(x))

    def moved(self, gradient: np.ndarray, rate: float, form: Form) -> Place:
        """After one step of Adam."""
        count = self.updates + 1
        first = _DECAY[0] * self.first + (1 - _DECAY[0]) * gradient
        second = _DECAY[1] * self.second + (1 - _DECAY[1]) * gradient**2
        length = np.sqrt(second / (1 - _DECAY[1] ** count)) + _EPSILON
        x = form.inside(self.x - rate * first / (1 - _DECAY[0] ** count) / length)
        return replace(self, x=x, first=first, second=second, updates=count)

    def to_json(self) -> dict[str, Any]:
        """Everything, exactly; a loss that is no finite number is None."""
        numbers = {name: getattr(self, name).tolist() for name in ("x", "first", "second")}
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]
        return {**numbers, "updates": self.updates, "step": self.step, "losses": losses}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Place:
        """Read what :meth:`to_json` wrote; the losses are history and stay in the log.

        Raises:
            BoomError: it is something else.
        """
        try:
            x, first, second = (np.array(raw[name], np.float64) for name in ("x", "first", "second"))
            return cls(x, first, second, int(raw["updates"]), int(raw["step"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BoomError(f"the log's last trial is no place of a gradient search ({error!r}).") from None


class Descent:
    """A form, where its slopes come from, and how far it goes between two trials."""

    def __init__(self, form: Form, slopes: Slopes, steps: int = 10, rate: float = 0.02) -> None:
        """``rate``: Adam's, in the units of the form's parameters.

        Raises:
            BoomError: no steps, or a rate that is not above 0.
        """
        if steps < 1:
            raise BoomError(f"a gradient search takes at least one step from trial to trial, got {steps}.")
        if not (math.isfinite(rate) and rate > 0):
            raise BoomError(f"the learning rate of a gradient search is above 0, got {rate}.")
        self._form = form
        self._slopes = slopes
        self._steps = steps
        self._rate = rate

    def advance(self, parameters: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Point]:
        """The next trial's parameters and point, ``steps`` steps on from those of the last; None: the start itself.

        A probe batch whose loss or gradient is not finite moves nothing.

        Raises:
            BoomError: the parameters are those of another search.
        """
        place = Place.start(self._form)
        if parameters is not None:
            place = self._stage(self._resumed(parameters, len(place.x)))
        return place.to_json(), self._form.point(place.x)

    def _stage(self, place: Place) -> Place:
        for _ in range(self._steps):
            loss, slope = self._slopes(self._form.point(place.x), place.step)
            gradient = self._form.pull(place.x, slope) if math.isfinite(loss) else np.full_like(place.x, math.nan)
            if np.isfinite(gradient).all():
                place = place.moved(gradient, self._rate, self._form)
            place = replace(place, step=place.step + 1, losses=(*place.losses, loss))
        return place

    def _resumed(self, parameters: Mapping[str, Any], size: int) -> Place:
        place = Place.from_json(parameters)
        if len(place.x) != size:
            raise BoomError(
                f"the log's last trial has {len(place.x)} parameters and this search {size}: it is of another search. "
                "Search in a new run directory, or delete the log."
            )
        return place
