"""Dates, times and durations as lists of ints.

Never msgpack's own timestamp, which refuses naive times and turns offsets into UTC.
"""

import datetime as dt
import importlib
import re
import sys
from typing import Any

from maas.errors import CodecError
from maas.kinds import Path, Unpacker, add_kind, brief, render
from maas.leaves import fields, typed

__all__: list[str] = []

_ZONE = re.compile(r"[A-Za-z0-9_+\-]{1,32}(/[A-Za-z0-9_+\-]{1,32}){0,3}")
"""Zone keys lead to files; those with a dot or a leading slash do not even reach zoneinfo."""


def _is_zone_info(zone: Any) -> bool:
    # zoneinfo asks sysconfig where the files are, 15 ms at import; who has a zone has paid them.
    zoneinfo = sys.modules.get("zoneinfo")
    return zoneinfo is not None and type(zone) is zoneinfo.ZoneInfo and zone.key is not None


def _pack_zone(zone: dt.tzinfo | None, path: Path) -> Any:
    if zone is None:
        return None
    if _is_zone_info(zone):
        return zone.key  # type: ignore[attr-defined]
    if type(zone) is dt.timezone:
        offset = zone.utcoffset(None) // dt.timedelta(microseconds=1)
        plain = dt.timezone(dt.timedelta(microseconds=offset))
        return offset if zone.tzname(None) == plain.tzname(None) else [offset, zone.tzname(None)]
    raise CodecError(
        f"{render(path)} has a tzinfo of type {type(zone).__name__}; "
        "use zoneinfo.ZoneInfo or datetime.timezone"
    )


def _load_zone(packed: Any) -> dt.tzinfo | None:
    if packed is None:
        return None
    if type(packed) is str:
        if not _ZONE.fullmatch(packed):
            raise CodecError(f"{brief(packed)} is no time zone")
        return importlib.import_module("zoneinfo").ZoneInfo(packed)  # type: ignore[no-any-return]
    if type(packed) is int:
        return dt.timezone(dt.timedelta(microseconds=packed))
    offset, name = fields(packed, "a time zone", int, str)
    return dt.timezone(dt.timedelta(microseconds=offset), name)


def _clock(value: dt.datetime | dt.time, path: Path) -> list[Any]:
    return [
        value.hour,
        value.minute,
        value.second,
        value.microsecond,
        value.fold,
        _pack_zone(value.tzinfo, path),
    ]


def _load_datetime(_unpacker: Unpacker, payload: Any) -> dt.datetime:
    *numbers, zone = typed(payload, list, "$datetime")
    year, month, day, *clock = fields(numbers, "$datetime", *[int] * 8)
    date = dt.date(year, month, day)
    return dt.datetime.combine(date, _time(clock, zone))


def _load_time(_unpacker: Unpacker, payload: Any) -> dt.time:
    *numbers, zone = typed(payload, list, "$time")
    return _time(fields(numbers, "$time", *[int] * 5), zone)


def _time(clock: list[Any], zone: Any) -> dt.time:
    hour, minute, second, microsecond, fold = clock
    return dt.time(hour, minute, second, microsecond, _load_zone(zone), fold=fold)


add_kind(
    dt.datetime,
    "$datetime",
    lambda _packer, value, path: [value.year, value.month, value.day, *_clock(value, path)],
    _load_datetime,
)
add_kind(dt.time, "$time", lambda _packer, value, path: _clock(value, path), _load_time)
add_kind(
    dt.date,
    "$date",
    lambda _packer, value, _path: [value.year, value.month, value.day],
    lambda _unpacker, payload: dt.date(*fields(payload, "$date", int, int, int)),
)
add_kind(
    dt.timedelta,
    "$timedelta",
    lambda _packer, value, _path: [value.days, value.seconds, value.microseconds],
    lambda _unpacker, payload: dt.timedelta(*fields(payload, "$timedelta", int, int, int)),
)
