"""A property made when first read, as `functools.cached_property` is, that also fails only once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast

from serve_app.errors import ConversionError

T = TypeVar("T")
Owner = TypeVar("Owner")


class Once(Generic[Owner, T]):
    """If making fails, later readers get the same error at once, without minutes of trying again."""

    def __init__(self, make: Callable[[Owner], T]) -> None:
        self._make = make
        self._key = f"_made_{make.__name__}"

    def __get__(self, owner: Owner, _: type[Owner]) -> T:
        made = vars(owner)
        if self._key not in made:
            try:
                made[self._key] = self._make(owner)
            except ConversionError as error:
                made[self._key] = error
        found = made[self._key]
        if isinstance(found, ConversionError):
            raise found
        return cast("T", found)
