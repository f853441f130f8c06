"""The shipped policy holds the users' world, and whatever is wrong in a policy is named with its place and a remedy."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops import policy_file
from ops.policy_file import MAX_CHARS, PolicyError, PolicyProblem, load_policy
from router.core.guardrails import GUARDRAILS
from schemas.policy import Policy, Price

FILE = Path(policy_file.__file__).with_name("policy.yaml")
TEXT = FILE.read_text(encoding="utf-8")

SMALL = """\
version: 1
nodes:
  mac: {memory_gb: 24, urls: {ollama: "http://127.0.0.1:11434"}}
providers:
  ollama: {dialect: ollama}
models:
  coder:
    nodes: [mac]
    provider: ollama
    backend: "qwen3:14b"
    context_tokens: 32000
    quality: 0.7
    tokens_per_s: 40
    resident: true
capabilities:
  code: {task: code}
tasks:
  code: {models: [coder]}
default: {models: [coder]}
agents:
  npc: {model: coder}
guardrails:
  secrets: {action: redact}
"""


def found_in(text: str) -> tuple[PolicyProblem, ...]:
    with pytest.raises(PolicyError) as error:
        load_policy(text, "p.yaml")
    return error.value.problems


def changed(old: str, new: str) -> str:
    assert SMALL.count(old) == 1
    return SMALL.replace(old, new)


def priced(price: str) -> str:
    return changed("tokens_per_s: 40", f"tokens_per_s: 40\n    price: {price}")


@pytest.fixture(scope="module")
def shipped() -> Policy:
    return load_policy(TEXT, "ops/policy.yaml")


def test_the_shipped_nodes_are_the_users_machines(shipped: Policy) -> None:
    assert {name: (node.memory_gb, node.urls) for name, node in shipped.nodes.items()} == {
        "macbook": (24, {"ollama": "http://127.0.0.1:11434"}),
        "macmini": (64, {"ollama": "http://169.254.19.104:11434"}),
        "cloud": (None, {}),
    }


@pytest.mark.parametrize(
    ("name", "node", "backend", "memory_gb", "context_tokens"),
    [
        ("judge", "macbook", "llama3.1:8b", 6, 16_000),
        ("architect", "macmini", "qwen3-coder-next:q4_K_M", 52, 256_000),
        ("coder", "macmini", "qwen3-coder:32b", 19, 32_000),
        ("reviewer", "macmini", "qwen3:14b", 9, 32_000),
        ("gemini", "cloud", "gemini-2.5-flash", 0, 1_048_576),
        ("gpt", "cloud", "gpt-4.1", 0, 1_047_576),
        ("claude", "cloud", "claude-sonnet-4-5", 0, 200_000),
    ],
)
def test_the_shipped_models(
    shipped: Policy, name: str, node: str, backend: str, memory_gb: float, context_tokens: int
) -> None:
    model = shipped.models[name]
    assert (model.nodes, model.backend, model.memory_gb, model.context_tokens) == (
        (node,), backend, memory_gb, context_tokens
    )  # fmt: skip
    assert model.costs_nothing == (name not in ("gpt", "claude"))
    assert model.resident == (name == "judge")


def test_the_shipped_policy_gives_a_price_to_what_is_ours_and_leaves_the_others_to_be_looked_up(
    shipped: Policy,
) -> None:
    ours = {name for name, model in shipped.models.items() if model.price is not None}
    assert ours == {"judge", "architect", "coder", "reviewer", "embedding"}
    assert all(shipped.models[name].costs_nothing for name in ours)


@pytest.mark.parametrize(
    "price", ["{}", "{input_usd_per_mtok: 1}", "{output_usd_per_mtok: 1}", "{usd_per_hour: 1, input_usd_per_mtok: 1}"]
)
def test_a_price_says_all_or_is_left_out(price: str) -> None:
    with pytest.raises(PolicyError, match=r"models\.coder\.price: says only in part what it costs"):
        load_policy(priced(price), "p.yaml")


def test_a_price_is_read_exactly() -> None:
    price = "{input_usd_per_mtok: 0.30, output_usd_per_mtok: 2.50, cached_input_usd_per_mtok: 0.03}"
    assert load_policy(priced(price), "p.yaml").models["coder"].price == Price(
        input_usd_per_mtok=Decimal("0.3"),
        output_usd_per_mtok=Decimal("2.5"),
        cached_input_usd_per_mtok=Decimal("0.03"),
    )
    timed = load_policy(priced("{usd_per_hour: 0.0135}"), "p.yaml").models["coder"].price
    assert timed == Price(usd_per_hour=Decimal("0.0135"))


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        ("architect", "plan design architecture requirements strategy"),
        ("coder", "code implement refactor fix feature optimize"),
        ("reviewer", "review test qa validate debug summary"),
    ],
)
def test_the_shipped_tasks_go_to_their_models(shipped: Policy, model: str, tasks: str) -> None:
    assert {task: shipped.tasks[task].models for task in tasks.split()} == dict.fromkeys(tasks.split(), (model,))
    assert shipped.models[model].role == model


def test_the_shipped_trading_tasks_choose_a_cloud_model_by_context(shipped: Policy) -> None:
    variants = {name: set(task.variants) for name, task in shipped.tasks.items() if task.variants}
    assert variants == {
        "data_processing": {"large_dataset", "normal_dataset", "simple_calculation"},
        "strategy_development": {"complex_strategy", "signal_generation", "parameter_optimization"},
        "service_operations": {"backtesting", "order_execution", "risk_monitoring"},
    }
    for name in variants:
        routes = list(shipped.tasks[name].variants.values())
        assert [route.when is None for route in routes] == [False, False, True]
        assert {model for route in routes for model in route.models} <= {"gemini", "gpt", "claude"}


def test_the_shipped_defaults_aliases_agents_and_chains(shipped: Policy) -> None:
    assert shipped.default.models == ("architect",)
    assert set(shipped.aliases) == {"creative", "fast", "high-reasoning", "cheap"}
    assert set(shipped.agents) == {
        "gm-orchestrator", "npc-ai", "rule-manager", "data_agent", "strategy_agent", "service_agent"
    }  # fmt: skip
    assert all(agent.fallbacks for agent in shipped.agents.values())
    assert shipped.fallbacks == {"default": ("gemini", "gpt", "claude"), "local": ()}
    assert shipped.critical_keeps_model == ("plan", "design", "architecture")
    assert {name: rule.action for name, rule in shipped.guardrails.items()} == {
        "secrets": "redact",
        "injection": "block",
    }
    assert {"creative", "code", "plan", "review", "trading", "chat", "summary"} <= set(shipped.capabilities)


def test_the_shipped_limits_are_the_defaults_written_out(shipped: Policy) -> None:
    written = yaml.safe_load(TEXT)["limits"]
    assert written == shipped.limits.model_dump()
    assert shipped.limits == type(shipped.limits)()


def test_a_problem_reads_as_a_paragraph() -> None:
    with pytest.raises(PolicyError) as error:
        load_policy(changed("provider: ollama", "provider: olama"), "ops/policy.yaml")
    assert str(error.value) == (
        "ops/policy.yaml:9:15: models.coder.provider: unknown provider 'olama'\n"
        "  remedy: did you mean 'ollama'? one of: ollama"
    )


@pytest.mark.parametrize(
    ("old", "new", "place", "where", "what", "remedy"),
    [
        ("    provider:", "    provder:", (9, 5), "models.coder.provder", "unknown field", "mean 'provider'?"),
        ("version: 1\n", "", (1, 1), "policy", "field 'version' is missing", "add `version: ...`"),
        ("    quality: 0.7\n", "", (7, 3), "models.coder", "field 'quality' is missing", "add `quality: ...`"),
        ("32000", '"32000"', (11, 21), "models.coder.context_tokens", 'cannot be "32000"', "a whole number"),
        ("0.7", "1.5", (12, 14), "models.coder.quality", "cannot be 1.5", "less than or equal to 1"),
        ("0.7", "1e999", (12, 14), "models.coder.quality", "cannot be Infinity", "a finite number"),
        ("resident: true", "resident: yes", (14, 15), "models.coder.resident", 'cannot be "yes"', "true or false"),
        ("nodes: [mac]", "nodes: mac", (8, 12), "models.coder.nodes", 'cannot be "mac"', "a list: `[first, second]`"),
        ("nodes: [mac]", "nodes: []", (8, 5), "models.coder.nodes", "an empty list", "at least one entry"),
        ("nodes: [mac]", "nodes: [mic]", (8, 13), "models.coder.nodes[0]", "unknown node 'mic'", "one of: mac"),
        ("action: redact", "action: redakt", (23, 21), "guardrails.secrets.action", '"redakt"', "mean 'redact'?"),
        ("  secrets:", "  secretz:", (23, 3), "guardrails.secretz", "unknown guardrail", "mean 'secrets'?"),
        ("  code: {m", "  co de: {m", (18, 3), "tasks.co de", "cannot be a name", "A-Z a-z 0-9 _ -"),
        ("{task: code}", "{task: coda}", (16, 16), "capabilities.code.task", "unknown task 'coda'", "mean 'code'?"),
        ("{task: code}", "{}", (16, 3), "capabilities.code", "either `task` or `models`", "exactly one"),
        ("{model: coder}", "{model: code}", (21, 16), "agents.npc.model", "unknown model 'code'", "mean 'coder'?"),
        (" urls: {ollama:", " urls: {olama:", (3, 38), "nodes.mac.urls.olama", "unknown provider", "mean 'ollama'?"),
        ("default: {", "default: {fallback: locl, ", (19, 21), "default.fallback", "unknown fallback", "default"),
        ("default: {", "default: {when: {}, ", (19, 11), "default.when", "means nothing here", "leave it out"),
        ("agents:\n", "fallbacks: {}\nagents:\n", (20, 1), "fallbacks", "no chain `default`", "`default: []`"),
        ("agents:\n", "tasks: {}\nagents:\n", (20, 1), "tasks", "again, first on line 17", "keep one"),
        ("version: 1\n", "\tversion: 1\n", (1, 1), "policy", "cannot start any token", "spaces"),
        ("32000", "*tokens", (11, 21), "policy", "undefined alias", "define the anchor"),
        ("32000", "!!int 32000", (11, 21), "policy", "the tag tag:yaml.org,2002:int", "leave it out"),
        ("32000", "3\a2", (11, 22), "policy", r"the character '\x07'", "remove it"),
        ("32000", "3\ud8002", (11, 22), "policy", r"the character '\ud800'", "remove it"),
        ("agents:\n", "agents:\n  <<: {}\n", (21, 3), "agents.<<", "merge keys are not supported", "write the fields"),
        ("agents:\n", "---\nagents:\n", (20, 1), "policy", "another document", "one document per file"),
        ("agents:\n", "agents:\n  ? [npc]\n  : 1\n", (21, 5), "agents", "a key that is no text", "a name"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(old: str, new: str, place: tuple[int, int], where: str, what: str, remedy: str) -> None:
    problem = next(each for each in found_in(changed(old, new)) if what in each.what)
    assert (problem.file, problem.line, problem.column, problem.where) == ("p.yaml", *place, where)
    assert remedy in problem.remedy


SERVER = "  ollama: {dialect: ollama}\n"
SECOND = """\
  other:
    {nodes: [mac], provider: ollama, backend: "gemma3:12b", context_tokens: 8000, quality: 0.5, tokens_per_s: 20}
capabilities:
"""


def test_who_brings_models_into_memory_follows_the_dialect_unless_it_is_said() -> None:
    def residence(provider: str) -> str:
        return load_policy(changed(SERVER, f"  ollama: {provider}\n"), "p.yaml").providers["ollama"].residence

    assert residence("{dialect: ollama}") == "ollama"
    assert residence("{dialect: ollama, residency: none}") == "none"
    assert (
        residence("{dialect: openai}") == residence("{dialect: anthropic}") == residence("{dialect: cohere}") == "none"
    )
    assert residence("{dialect: openai, residency: llama-server}") == "llama-server"
    assert residence("{dialect: anthropic, residency: single}") == "single"


@pytest.mark.parametrize(
    ("dialect", "residency", "remedy"),
    [
        ("openai", "ollama", "the dialect ollama"),
        ("ollama", "llama-server", "openai or anthropic"),
        ("gemini", "llama-server", "openai or anthropic"),
        ("loopback", "single", "openai or anthropic"),
    ],
)
def test_a_residency_that_does_not_go_with_the_dialect(dialect: str, residency: str, remedy: str) -> None:
    [problem] = found_in(changed(SERVER, f"  ollama: {{dialect: {dialect}, residency: {residency}}}\n"))
    assert (problem.where, problem.line) == ("providers.ollama.residency", 5)
    assert f"does not go with the dialect {dialect}" in problem.what
    assert remedy in problem.remedy


def test_a_server_that_holds_one_model_is_given_one() -> None:
    single = changed(SERVER, "  ollama: {dialect: openai, residency: single}\n")
    load_policy(single, "p.yaml")
    same = SECOND.replace("gemma3:12b", "qwen3:14b")
    load_policy(single.replace("capabilities:\n", same), "p.yaml")
    load_policy(changed(SERVER, SERVER).replace("capabilities:\n", SECOND), "p.yaml")
    [problem] = found_in(single.replace("capabilities:\n", SECOND))
    assert problem.where == "models.other.backend"
    assert "ollama holds one model, and on mac that is qwen3:14b" in problem.what


def test_all_problems_are_named_in_the_order_of_the_file() -> None:
    text = changed("provider: ollama", "provider: olama").replace("{model: coder}", "{model: code}")
    assert [(each.line, each.where) for each in found_in(text)] == [
        (9, "models.coder.provider"),
        (21, "agents.npc.model"),
    ]


def test_what_is_wrong_in_a_part_that_others_share_is_told_once() -> None:
    with pytest.raises(PolicyError) as refused:
        load_policy(TEXT.replace("code: &coder {models: [coder]}", "code: &coder {models: [codr]}"), "ops/policy.yaml")
    assert [problem.where for problem in refused.value.problems] == ["tasks.code.models[0]"]


@pytest.mark.parametrize("text", ["", "# only a comment", "just text", "- 1", "null", "3"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    (problem,) = found_in(text)
    assert problem.what.startswith("cannot be ")
    assert "a mapping" in problem.remedy


@pytest.mark.parametrize(
    "text",
    [
        "- " * 100_000,
        "[" * 100_000 + "]" * 100_000,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "k: [" + "x, " * 30_000 + "]",
        "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 15)),
        "x" * (MAX_CHARS + 1),
    ],
    ids=["deep block", "deep flow", "endless", "endless mapping", "wide", "bomb", "long"],
)
def test_more_than_a_policy_can_be_is_refused(text: str) -> None:
    (problem,) = found_in(text)
    assert "at most" in problem.remedy


def test_off_is_a_word_and_anchors_are_shared() -> None:
    text = changed("action: redact", "action: off").replace(
        "{models: [coder]}\ndefault", "&c {models: [coder]}\ndefault"
    )
    policy = load_policy(text.replace("default: {models: [coder]}", "default: *c"), "p.yaml")
    assert policy.guardrails["secrets"].action == "off"
    assert policy.default.models == policy.tasks["code"].models == ("coder",)


def test_keys_are_text_whatever_they_look_like() -> None:
    policy = load_policy(SMALL.replace("tasks:\n", "tasks:\n  on: {models: [coder]}\n  010: {models: [coder]}\n"), "p")
    assert set(policy.tasks) == {"on", "010", "code"}


PROMPTS = [
    json.loads(line) for line in FILE.with_name("demo").joinpath("prompts.jsonl").read_text("utf-8").splitlines()
]


def test_the_demo_has_prompts_of_every_kind_with_their_licence() -> None:
    assert len(PROMPTS) >= 48
    assert {row["lang"] for row in PROMPTS} == {"ko", "en"}
    assert {"creative", "code", "plan", "review", "trading"} <= {row["capability"] for row in PROMPTS}
    assert {row["license"] for row in PROMPTS} <= {"MIT", "CC0-1.0", "Apache-2.0"}
    assert all(row["source"] for row in PROMPTS)


@pytest.mark.parametrize("row", PROMPTS, ids=[f"line{at}" for at in range(1, len(PROMPTS) + 1)])
def test_a_demo_prompt_is_routed_by_the_shipped_policy(shipped: Policy, row: dict[str, Any]) -> None:
    tasks = {*shipped.tasks, *(variant for task in shipped.tasks.values() for variant in task.variants)}
    assert row["capability"] in shipped.capabilities
    assert row.get("task") in {None, *tasks}
    assert row.get("model") in {None, *shipped.aliases, *shipped.models}
    actions = {
        rule.action
        for name, rule in shipped.guardrails.items()
        for match in GUARDRAILS[name](row["prompt"])
        if match.score >= rule.threshold
    }
    assert actions == {"blocked": {"block"}, "redacted": {"redact"}, None: set()}[row.get("expect")]
