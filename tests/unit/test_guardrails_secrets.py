"""`secrets`: provider formats, generic assignments, look-alikes, exact spans, and bounded work."""

import pytest

from router.core.guardrails.secret_formats import DISCORD, FORMATS, URL_PASSWORD
from router.core.guardrails.secrets import secrets
from tests.support.patterns import unbounded

# 250 characters of no pattern; values are cut from it, so that none stands in this source.
NOISE = "Zk3vQ9xLm7Rt2WpYb8NcJd5HfG6sVa4TeUuKiOo1PzXq0CwErMyBnLlAjDhSgFk" * 4
HEX = "9f3c1a7be04d5826" * 10
SECRETS = {
    "anthropic_key": "sk-" + "ant-api03-" + NOISE[:90],
    "openai_key": "sk-" + "proj-" + NOISE[:80],
    "aws_access_key": "AK" + "IA" + "PFFP4NC2IXWEEYI2",
    "google_api_key": "AI" + "za" + NOISE[:35],
    "github_token": "gh" + "p_" + NOISE[:36],
    "gitlab_token": "gl" + "pat-" + NOISE[:20],
    "slack_token": "xo" + "xb-394167124641-201512401267-" + NOISE[:24],
    "stripe_key": "sk" + "_live_" + NOISE[:24],
    "huggingface_token": "h" + "f_" + NOISE[:34],
    "npm_token": "np" + "m_" + NOISE[:36],
    "pypi_token": "py" + "pi-AgEIcHlwaS5vcmc" + NOISE[:60],
    "twilio_key": "S" + "K" + HEX[:32],
    "sendgrid_key": "S" + "G." + NOISE[:22] + "." + NOISE[22:65],
    "telegram_token": "A" + "A" + NOISE[:33],
    "discord_token": "MT" + NOISE[:22] + "." + NOISE[30:36] + "." + NOISE[36:74],
    "jwt": "ey" + "J" + NOISE[:20] + ".ey" + "J" + NOISE[20:60] + "." + NOISE[60:103],
    "cohere_key": NOISE[:40],
    "azure_storage_key": NOISE[:86] + "==",
    "azure_client_secret": "abC8" + "Q~" + NOISE[:34],
    "aws_secret_key": NOISE[:40],
    "bearer_token": NOISE[:48],
    "url_password": NOISE[:14],
    "private_key": "-----BEGIN "
    + "OPENSSH PRIVATE KEY-----\n"
    + NOISE[:70]
    + "\n-----END "
    + "OPENSSH PRIVATE KEY-----",
    "password": NOISE[:10] + "!",
    "generic_key": NOISE[:32],
}
BEFORE = {
    "telegram_token": "bot 1230218629:",
    "cohere_key": "CO_API_KEY=",
    "azure_storage_key": "AccountName=x;AccountKey=",
    "aws_secret_key": "aws_secret_access_key = ",
    "bearer_token": "Authorization: Bearer ",
    "url_password": "postgresql://svc:",
    "password": "MYSQL_ROOT_PASSWORD=",
    "generic_key": "INTERNAL_API_KEY: ",
}
AFTER = {"url_password": "@db73.internal:5432/prod"}

LOOKALIKES = [
    "YOUR_API_KEY",
    "sk-" + "x" * 48,
    "sk-" + "...",
    "gh" + "p_" + "*" * 36,
    "AK" + "IAIOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "aba3e0a0-71d0-47ce-91fd-3aae8a9fda0a",
    "a6eeb72f696a2c1429c2cc0576978c0355e50b91",
    "sha256:" + HEX[:64],
    "data:image/png;base64,iVBORw0KGgo" + NOISE[:60],
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHnyXsgQQRX7wpHtCRQDOqni4KlXWVVzT0DDoaiyqEY dev@laptop",
    'os.environ["OPENAI_API_KEY"]',
    "process.env.GEMINI_API_KEY",
    "${OPENAI_API_KEY}",
    "<your-token-here>",
    "@secret/db-password",
    "postgresql://user:password@localhost:5432/db",
    "evt_n32vaCxf3blVxTRS",
    "-----BEGIN " + "PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END " + "PUBLIC KEY-----",
]
FRAMES = [
    "TOKEN={}\nWhy does the app crash?",
    "key: {}\nPlease write a README.",
    "배포가 안 돼. 설정은 {} 이렇게 했어.",
]


@pytest.mark.parametrize("code", SECRETS)
@pytest.mark.parametrize(
    "frame", ["Deploy using {} and tell me.", "배포가 안 돼. 설정은 {} 이렇게 했어.", 'Client("{}")']
)
def test_the_span_is_exactly_the_secret(code: str, frame: str) -> None:
    text = frame.format(BEFORE.get(code, "") + SECRETS[code] + AFTER.get(code, ""))
    (match,) = secrets(text)
    assert match.code == code
    assert match.score >= 0.5
    assert match.span is not None
    assert text[match.span.start : match.span.end] == SECRETS[code]


@pytest.mark.parametrize("value", LOOKALIKES)
@pytest.mark.parametrize("frame", FRAMES)
def test_lookalikes_are_left_alone(value: str, frame: str) -> None:
    assert not list(secrets(frame.format(value)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("비밀번호: Kimchi" + "0924!Shk 맞지?", "Kimchi" + "0924!Shk"),
        ("비밀번호는 Kimchi" + "0924!Shk 입니다", "Kimchi" + "0924!Shk"),
        ("the password is Winter" + "7895!Gih ok", "Winter" + "7895!Gih"),
        ('{"db_password": "Ba91' + 'Qjwk4rW53p4O"}', "Ba91" + "Qjwk4rW53p4O"),
        ("İ PASSWORD=Ba91" + "Qjwk4rW53p4O", "Ba91" + "Qjwk4rW53p4O"),
    ],
)
def test_generic_assignments(text: str, value: str) -> None:
    (match,) = secrets(text)
    assert match.code == "password"
    assert match.span is not None
    assert text[match.span.start : match.span.end] == value


@pytest.mark.parametrize(
    "text",
    [
        "비밀번호 해시 저장 방법을 설명해줘.",
        "API 키 관리 방법을 정리해줘.",
        "토큰 만료 처리를 리팩터링해줘.",
        "password = get_password(user)",
        "token: Optional[str] = None, key: string",
        "def login(password: str, token=session.auth.token): ...",
    ],
)
def test_talk_about_secrets_is_no_secret(text: str) -> None:
    assert not list(secrets(text))


def test_provider_formats_score_higher_than_guesses() -> None:
    sure, guess = (next(secrets(BEFORE.get(c, "") + SECRETS[c])).score for c in ("github_token", "password"))
    assert guess < sure


def test_a_key_cut_off_or_encrypted_is_still_found() -> None:
    head = "-----BEGIN " + "RSA PRIVATE KEY-----\n"
    (cut,) = secrets(head + NOISE[:64] + "\n" + NOISE[:30])
    assert cut.span == (0, len(head) + 64 + 1 + 30)
    encrypted = (
        head
        + "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A\n\n"
        + NOISE[:64]
        + "\n-----END "
        + "RSA PRIVATE KEY-----"
    )
    (whole,) = secrets(f"x {encrypted} y")
    assert whole.span == (2, 2 + len(encrypted))


@pytest.mark.parametrize(
    "pattern", [*(f.pattern for f in FORMATS), DISCORD, URL_PASSWORD], ids=lambda p: p.pattern[:30]
)
def test_every_pattern_is_bounded(pattern: object) -> None:
    assert not unbounded(pattern)


@pytest.mark.parametrize(
    "unit", ["eyJ", "sk-", "a.", "password=", "-----BEGIN " + "PRIVATE KEY-----", "://a:", "pw:", "키 ", "=\\"]
)
def test_long_hostile_texts_are_done(unit: str) -> None:
    list(secrets(unit * (200_000 // len(unit))))
