"""What bytes from Redis look like to people."""


def readable(value: bytes) -> str:
    r"""Return the text of an id or a field; bytes that are not UTF-8 stand as `\xNN`."""
    return value.decode("utf-8", "backslashreplace")
