"""How much JSON a body is, told from its bytes before anything is built of it."""


def has_more_values(body: bytes, most: int) -> bool:
    """Whether its JSON has more than `most` values; an empty list or object counts twice, what strings hold does not.

    Of what is no JSON the answer means nothing.
    """
    if _commas_and_openers(body) < most:
        return False
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 4 * most:  # a value has two strings at most: its key, and itself
        return True
    return _commas_and_openers(b"".join(unescaped.split(b'"')[::2])) >= most


def _commas_and_openers(body: bytes) -> int:
    """Every value but the first comes behind one of them."""
    return body.count(b",") + body.count(b"[") + body.count(b"{")
