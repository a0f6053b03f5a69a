from __future__ import annotations

import msgspec

from gateway.config.decode import Decoder, every_key, fields_of
from gateway.config.model import Config, Rule
from gateway.config.references import ReferenceResolver
from gateway.config.tree import parse_tree

from .world import ENV, read_file


def decoded(text: str) -> tuple[Config, list[str]]:
    tree = parse_tree(text, "", {})
    decoder = Decoder(tree, ReferenceResolver(ENV, read_file))
    return decoder.section(Config, tree.root, ()), [str(problem) for problem in decoder.problems]


def test_keys_are_those_of_the_file_not_of_python() -> None:
    assert "for" in fields_of(Rule)
    assert {"rules[].for", "rules[].allow[].projects.under_group", "listen.limits.headers"} <= set(every_key())


def test_booleans_of_yaml_1_1() -> None:
    config, problems = decoded("identities: [{id: a, anonymous: yes}, {id: b, gitlab_token: off}]")
    assert [identity.anonymous for identity in config.identities] == [True, False]
    assert problems == ["upstream: is missing", "version: is missing"] or len(problems) == 2


def test_off_names_a_cache_mode() -> None:
    config, _ = decoded("cache: {mode: off}")
    assert config.cache.mode == "off"


def test_numbers_are_words_where_words_belong() -> None:
    config, problems = decoded("credentials: [{id: 42, token: '${env:TOKEN}'}]\nlisten: {limits: {target_bytes: 16384}}")
    assert config.credentials[0].id == "42"
    assert config.listen.limits.target_bytes == 16384
    assert all("is missing" in problem for problem in problems)


def test_one_broken_item_leaves_the_others() -> None:
    config, problems = decoded("rules: [5, {id: a, for: [b], deny: [{methods: [GET]}]}]")
    assert [rule.id for rule in config.rules] == ["a"]
    assert any("rules[0]: is a single value where a mapping belongs" in problem for problem in problems)


def test_stand_ins_have_the_types_of_what_they_stand_for() -> None:
    config, _ = decoded(
        "upstream: {}\ncredentials: [{pool: [{}]}]\nrules: [{}]\nlimits: [{}]\nadmin: {keys: [{}]}\n"
        "identities: [{bind: {}}]\ncache: {routes: [{}]}"
    )
    assert msgspec.structs.asdict(config.rules[0])["for_"] == ()
    assert config.credentials[0].pool[0].token.reveal() == ""
    assert config.limits[0].rate is None
    assert str(config.upstream.url) == "http://localhost"
