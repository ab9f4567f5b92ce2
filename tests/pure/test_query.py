"""Which queries are the same one, and which never are."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import Counter
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc.query import key64, key_bytes, normalise, query_hash, scope_of

# No lone surrogates: they have no UTF-8 form, and cannot come over the wire.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
# Letters with several canonical forms, the marks that move past each other, full foldings, every kind of white space.
TRICKY = st.text(
    "aAsSıIİßẞſΣςσΐᾳᾼǰŸöÖÅ\u212b\u2126\u212a\u0345\u0301\u0308\u030c\u0323\u1e69 \t\n\x1c\x85\xa0\u2000\u3000"
)
EITHER = st.one_of(TEXTS, TRICKY)
VALUES = st.one_of(st.text(max_size=3), st.integers(-2, 2), st.booleans(), st.lists(st.integers(0, 2), max_size=2))
FILTERS = st.dictionaries(st.text('ab"[],:{}', max_size=3), VALUES, max_size=4)
TENANTS = st.text('ab"[],:{}', max_size=4)


@settings(deadline=None, max_examples=500)
@given(EITHER)
def test_the_normal_form_of_a_normal_form_is_itself(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)


def test_the_normal_form_of_every_single_character_is_stable() -> None:
    characters = (chr(n) for n in range(sys.maxunicode + 1) if not 0xD800 <= n < 0xE000)
    assert [c for c in characters if normalise(normalise(c)) != normalise(c)] == []


@settings(deadline=None, max_examples=500)
@given(EITHER)
def test_canonical_forms_and_white_space_make_no_difference(text: str) -> None:
    normal = normalise(text)
    assert normalise(unicodedata.normalize("NFD", text)) == normal
    assert normalise(unicodedata.normalize("NFC", text)) == normal
    assert normalise(f"\t {text} \n") == normal
    assert normalise("\u3000".join(text.split())) == normal
    assert not any(c.isspace() and c != " " for c in normal)
    assert "  " not in normal


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_the_short_way_for_ascii_is_the_long_one(text: str) -> None:
    assert normalise(text + " é") == (normalise(text) + " é").lstrip()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do  I\tLOG IN?", "how do i log in?"),
        ("STRASSE", "straße"),
        ("Ange\u0300le", "ANG\u00c8LE"),
        ("ΟΔΟΣ", "οδος"),
        ("\u212bngstr\u00f6m", "ångström"),
    ],
)
def test_queries_a_person_takes_for_equal_are_equal(one: str, other: str) -> None:
    assert query_hash(one, "docs") == query_hash(other, "docs")


@pytest.mark.parametrize(("one", "other"), [("a b", "ab"), ("résumé", "resume"), ("1", "¹"), ("a?", "a")])
def test_queries_that_differ_in_a_word_an_accent_or_a_sign_stay_apart(one: str, other: str) -> None:
    assert query_hash(one, "docs") != query_hash(other, "docs")


@settings(deadline=None)
@given(first=st.tuples(EITHER, TEXTS, TEXTS), second=st.tuples(EITHER, TEXTS, TEXTS))
def test_key_bytes_say_which_part_is_which(first: tuple[str, str, str], second: tuple[str, str, str]) -> None:
    same = (normalise(first[0]), *first[1:]) == (normalise(second[0]), *second[1:])
    assert (key_bytes(*first) == key_bytes(*second)) == same


@settings(deadline=None)
@given(parts=st.tuples(TEXTS, TEXTS, TEXTS), cut=st.integers(0, 20))
def test_text_moved_from_one_part_to_the_next_is_another_key(parts: tuple[str, str, str], cut: int) -> None:
    text, collection, scope = normalise(parts[0]), *parts[1:]
    if moved := collection[:cut]:
        assert key_bytes(text + moved, collection[cut:], scope) != key_bytes(text, collection, scope)
        assert key_bytes(text, collection[cut:], moved + scope) != key_bytes(text, collection, scope)


@settings(deadline=None)
@given(st.tuples(EITHER, TEXTS, TEXTS))
def test_a_hash_is_32_hex_characters_and_an_index_key_is_never_0(parts: tuple[str, str, str]) -> None:
    assert len(query_hash(*parts)) == 32
    assert int(query_hash(*parts), 16) >= 0
    assert 0 < key64(key_bytes(*parts)) < 2**64


@settings(deadline=None)
@given(held=FILTERS, tenant=TENANTS, data=st.data())
def test_a_scope_does_not_depend_on_the_order_of_its_filter(
    held: dict[str, Any], tenant: str, data: st.DataObject
) -> None:
    shuffled = dict(data.draw(st.permutations(list(held.items()))))
    assert scope_of(shuffled, tenant) == scope_of(held, tenant)
    assert scope_of(MappingProxyType(shuffled), tenant) == scope_of(held, tenant)
    assert scope_of({key: tuple(v) if isinstance(v, list) else v for key, v in held.items()}, tenant) == scope_of(
        held, tenant
    )


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(FILTERS, TENANTS), min_size=2, max_size=8))
def test_two_tenants_or_filters_never_share_a_scope(parts: list[tuple[dict[str, Any], str]]) -> None:
    # JSON, not ==: 1, True and "1" are three filters
    distinct = {json.dumps([held, tenant], sort_keys=True) for held, tenant in parts}
    scopes = Counter(scope_of(held, tenant) for held, tenant in parts)
    assert len(scopes) == len(distinct)


def test_no_filter_and_no_tenant_is_the_scope_without_a_name() -> None:
    assert scope_of(None) == scope_of({}) == scope_of({}, "") == ""
    assert scope_of({}, "a") == scope_of(None, "a") != ""
    assert scope_of({"tenant": "a"}) != scope_of(None, "a")
