"""Cron expressions: five fields, in UTC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["Schedule"]

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("weekday", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_PART = re.compile(r"(?P<first>\*|\?|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\d+))?")
_SEARCHED_DAYS = 366 * 8 + 2  # 29 February can be eight years away


@dataclass(frozen=True)
class Schedule:
    """The moments that a cron expression names."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read five fields or a macro such as `@hourly`. Raises ValueError with what is wrong."""
        fields = _MACROS.get(text.strip().lower(), text).split()
        if len(fields) != len(_FIELDS):
            raise ValueError(f"five cron fields (minute hour day month weekday), not {len(fields)}")
        parsed = [_values(field, *rule) for field, rule in zip(fields, _FIELDS, strict=True)]
        minutes, hours, days, months, weekdays = parsed
        # As in every cron: when both are restricted, either of them is enough.
        either = not any(field.startswith(("*", "?")) for field in (fields[2], fields[4]))
        schedule = cls(minutes, hours, days, months, frozenset(day % 7 for day in weekdays), either)
        if schedule.after(datetime(2024, 1, 1)) is None:
            raise ValueError("a day that exists in some month")
        return schedule

    def after(self, moment: datetime) -> datetime | None:
        """The first moment of the schedule later than `moment`; None when there is none in eight years."""
        start = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        for offset in range(_SEARCHED_DAYS):
            day = start if offset == 0 else (start + timedelta(days=offset)).replace(hour=0, minute=0)
            if self._on(day):
                for hour in sorted(self.hours):
                    for minute in sorted(self.minutes):
                        if (hour, minute) >= (day.hour, day.minute):
                            return day.replace(hour=hour, minute=minute)
        return None

    def _on(self, day: datetime) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either_day else of_month and of_week


def _values(text: str, name: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    values: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"a cron field for the {name}, not {part!r}")
        step = int(match["step"] or 1)
        if match["first"] in ("*", "?"):
            first, last = low, high
        else:
            first = _number(match["first"], name, low, high, names)
            last = high if match["step"] else first
        if match["last"]:
            last = _number(match["last"], name, low, high, names)
        if step < 1 or last < first or (match["last"] and match["first"] in ("*", "?")):
            raise ValueError(f"a cron field for the {name}, not {part!r}")
        values.update(range(first, last + 1, step))
    return frozenset(values)


def _number(text: str, name: str, low: int, high: int, names: dict[str, int]) -> int:
    value = names.get(text.lower(), int(text) if text.isdecimal() else -1)
    if not low <= value <= high:
        raise ValueError(f"a {name} from {low} to {high}, not {text!r}")
    return value
