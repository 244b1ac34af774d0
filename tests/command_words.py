"""Words of a command that tests begin with, and change."""


def last_of_each_key(*words: object) -> list[str]:
    """Return words without those whose key is said again later; a report has several runs."""
    texts = [str(word) for word in words]
    keys = [text.partition("=")[0] for text in texts]
    return [
        text
        for at, (key, text) in enumerate(zip(keys, texts, strict=True))
        if key == text or texts[0] == "report" or key not in keys[at + 1 :]
    ]
