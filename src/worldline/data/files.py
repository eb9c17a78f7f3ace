"""Moved to `worldline.files`; these names remain until every caller has followed."""

from worldline.files import atomic, mapped, read_json, remove_temporaries, write_array, write_json

__all__ = ["atomic", "mapped", "read_json", "remove_temporaries", "write_array", "write_json"]
