"""What may be told of where something is."""

import pytest

from adapters.bus import without_secrets


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nats://me:canary@hub:4222", "nats://hub:4222"),
        ("me:canary@hub:4222", "nats://hub:4222"),
        ("hub:4222", "nats://hub:4222"),
        ("https://canary@models.example/v1?key=canary#canary", "https://models.example/v1"),
    ],
)
def test_an_address_is_told_without_its_secrets(url: str, told: str) -> None:
    assert without_secrets(url) == told
