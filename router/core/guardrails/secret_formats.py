"""The formats in which providers issue credentials: a table, no logic. Adding a provider is one line."""

# ruff: noqa: E501 - one format is one line

import re
from typing import Final, NamedTuple


class Format(NamedTuple):
    """`pattern` is tried wherever one of `marks` occurs, `back` code points before it; its last group is the secret."""

    code: str
    marks: tuple[str, ...]
    pattern: re.Pattern[str]
    score: float
    back: int = 0
    in_context: bool = False


def _token(code: str, marks: str, rest: str, *, score: float = 0.95, back: int = 0) -> Format:
    # Inside a longer run of token characters nothing can start. This also keeps the search linear.
    return Format(code, tuple(marks.split()), re.compile(rf"(?<![\w-]){rest}(?![\w-])"), score, back)


def _context(code: str, marks: str, pattern: str, *, score: float = 0.95) -> Format:
    """The value alone could be anything; what stands before it says what it is."""
    return Format(code, tuple(marks.split()), re.compile(pattern), score, in_context=True)


FORMATS: Final = (
    _token("anthropic_key", "sk-ant-", r"sk-ant-[a-z0-9]{2,12}-[\w-]{32,200}"),
    _token("openrouter_key", "sk-or-", r"sk-or-v1-[0-9a-f]{64}"),
    _token("openai_key", "sk-", r"sk-(?:(?:proj|svcacct|admin|None)-[\w-]{32,250}|(?!ant-|or-)\w{32,64})"),
    _token("aws_access_key", "AKIA ASIA ABIA ACCA", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"),
    _token("google_api_key", "AIza", r"AIza[\w-]{35}"),
    _token("google_oauth_token", "ya29.", r"ya29\.[\w-]{30,2000}"),
    _token("google_client_secret", "GOCSPX-", r"GOCSPX-[\w-]{28}"),
    _token("azure_client_secret", "Q~", r"[\w.~-]{3}\dQ~[\w.~-]{31,34}", back=4),
    _token("github_token", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{36,251}"),
    _token("github_token", "github_pat_", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    _token("gitlab_token", "glpat- glptt- gldt- glrt- glcbt-", r"gl(?:pat|ptt|dt|rt|cbt)-[\w.-]{20,64}"),
    _token("slack_token", "xoxa- xoxb- xoxe. xoxe- xoxo- xoxp- xoxr- xoxs- xoxc- xoxd-", r"xox[a-s][.-][\w.%-]{20,250}"),
    _token("slack_token", "xapp-", r"xapp-\d-[A-Z0-9]{8,14}-\d{8,14}-[0-9a-f]{32,128}"),
    _context("slack_webhook", "hooks.slack.com/", r"hooks\.slack\.com/(?:services|workflows)/(T\w{6,14}/\w{6,14}/\w{16,30})"),
    _token("stripe_key", "sk_live_ rk_live_", r"[sr]k_live_[A-Za-z0-9]{20,250}"),
    _token("stripe_key", "sk_test_ rk_test_", r"[sr]k_test_[A-Za-z0-9]{20,250}", score=0.7),
    _token("stripe_key", "whsec_", r"whsec_[A-Za-z0-9+/]{24,88}"),
    _token("huggingface_token", "hf_ api_org_", r"(?:hf|api_org)_[A-Za-z0-9]{30,50}"),
    _token("npm_token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    _token("pypi_token", "pypi-", r"pypi-Ag[\w-]{50,1000}"),
    _token("twilio_key", "SK", r"SK[0-9a-f]{32}"),
    _token("sendgrid_key", "SG.", r"SG\.[\w-]{16,32}\.[\w-]{32,64}"),
    Format("telegram_token", (":AA",), re.compile(r"(?<=\d{8}):(AA[\w-]{31,34})(?![\w-])"), 0.95),
    _context("discord_webhook", "/api/webhooks/", r"/api/webhooks/(\d{17,20}/[\w-]{60,80})"),
    _context("cohere_key", "cohere Cohere COHERE CO_API_KEY", r"(?i:cohere|CO_API)[\w .-]{0,24}[\"']?\s?[:=(]\s?[\"']?([A-Za-z0-9]{40})(?!\w)"),
    _context("twilio_key", "TWILIO_AUTH twilio_auth authToken", r"\w{5,11}_?\w{0,9}[\"']?\s?[:=]\s?[\"']?([0-9a-f]{32})(?!\w)"),
    _token("groq_key", "gsk_", r"gsk_[A-Za-z0-9]{40,60}"),
    _token("xai_key", "xai-", r"xai-[A-Za-z0-9]{60,100}"),
    _token("perplexity_key", "pplx-", r"pplx-[A-Za-z0-9]{40,60}"),
    _token("replicate_token", "r8_", r"r8_[A-Za-z0-9]{37,40}"),
    _token("databricks_token", "dapi", r"dapi[0-9a-f]{32}(?:-\d)?"),
    _token("digitalocean_token", "dop_v1_ doo_v1_ dor_v1_", r"do[opr]_v1_[0-9a-f]{64}"),
    _token("shopify_token", "shpat_ shpca_ shppa_ shpss_", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    _token("docker_token", "dckr_", r"dckr_(?:pat|oat)_[\w-]{20,40}"),
    _token("vault_token", "hvs. hvb.", r"hv[sb]\.[\w-]{24,300}"),
    _token("linear_key", "lin_api_", r"lin_api_[A-Za-z0-9]{40}"),
    _token("notion_token", "ntn_ secret_", r"(?:ntn|secret)_[A-Za-z0-9]{40,50}"),
    _token("grafana_token", "glsa_ glc_", r"(?:glsa|glc)_[\w+/]{30,400}"),
    _token("supabase_token", "sbp_", r"sbp_[0-9a-f]{40}"),
    _token("newrelic_key", "NRAK-", r"NRAK-[A-Z0-9]{27}"),
    _token("postman_key", "PMAK-", r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    _token("mailgun_key", "key-", r"key-[0-9a-f]{32}"),
    _token("mailchimp_key", "-us", r"[0-9a-f]{32}-us\d{1,2}", back=32),
    _token("square_token", "sq0atp- sq0csp- EAAA", r"(?:sq0atp-[\w-]{22}|sq0csp-[\w-]{43}|EAAA[\w-]{60})"),
    _token("age_key", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{58}"),
    _token("jwt", "eyJ", r"eyJ[\w-]{10,2000}\.eyJ[\w-]{10,8000}\.[\w-]{16,2000}", score=0.9),
    _context("azure_storage_key", "AccountKey=", r"AccountKey=([A-Za-z0-9+/]{86}==)"),
    _context("azure_sas", "sig=", r"sig=([A-Za-z0-9%+/]{43,90}(?:%3[Dd]|=))", score=0.9),
    _context("aws_secret_key", "secret_access_key SECRET_ACCESS_KEY SecretAccessKey secretAccessKey", r"\w{15,17}[\"']?\s{0,3}[:=]\s{0,3}[\"']?([A-Za-z0-9+/]{40})(?![\w+/=])"),
    _context("bearer_token", "Bearer bearer BEARER", r"(?i:bearer)[ \t]{1,4}([\w.~+/-]{20,4000}={0,2})", score=0.85),
    _context("basic_auth", "Basic basic", r"(?i:basic)[ \t]([A-Za-z0-9+/]{16,400}={0,2})(?![\w+/])", score=0.7),
    _context("kakao_key", "KakaoAK", r"KakaoAK ([0-9a-f]{32})(?!\w)"),
)  # fmt: skip

# Its marks are the first letters of base64, too common to look for one by one.
DISCORD: Final = re.compile(r"[MNO](?<![\w.-].)[\w-]{23,27}\.[\w-]{6}\.[\w-]{27,40}(?![\w-])")
URL_PASSWORD: Final = re.compile(r"://[^\s:/@\"'<>]{0,100}:([^\s/@\"'<>]{3,200})@(?=[\w.\[{-])")
