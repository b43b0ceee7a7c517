"""Text that comes token by token is the whole text, and never half a character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.errors import CallerError, ConfigError
from alignedsched_torch.text import BROKEN, Text
from alignedsched_torch.tiny import write_tiny


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    folder = tmp_path_factory.mktemp("bytes")
    write_tiny(folder, layers=1, hidden=16)
    return Text(folder, 257)


@given(st.text(max_size=30))
def test_characters_come_whole(text: Text, written: str) -> None:
    if not written:
        return
    detokenizer = text.detokenizer()
    tokens = text.ids(written).tolist()
    assert len(tokens) == len(written.encode())
    pieces = [detokenizer.add(token) for token in tokens]
    if BROKEN not in written:
        assert "".join(pieces) == written
        assert not any(BROKEN in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.rest() == written


@given(st.lists(st.integers(0, 256), max_size=30))
def test_pieces_of_any_tokens_join_to_their_text(text: Text, tokens: list[int]) -> None:
    detokenizer = text.detokenizer()
    pieces = "".join(detokenizer.add(token) for token in tokens) + detokenizer.rest()
    assert pieces == text.text(tokens)
    pieces.encode("utf-8")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ([], "empty"),
        ([3, 300], r"token 1 of the prompt is 300, outside of the model's vocabulary of 257"),
        ([-1], "token 0 of the prompt is -1"),
        ([1.5], r"must be a whole number, got 1\.5"),
        ([True], "must be a whole number, got True"),
        (7, "got int"),
    ],
)
def test_a_prompt_that_is_none_is_refused_by_name(text: Text, prompt: object, message: str) -> None:
    with pytest.raises(CallerError, match=message):
        text.ids(prompt)


def test_a_tokenizer_that_does_not_fit_is_named(tmp_path: Path) -> None:
    write_tiny(tmp_path, layers=1, hidden=16)
    with pytest.raises(ConfigError, match=r"tokenizer\.json: token ids go up to 256, the model's vocabulary has 200"):
        Text(tmp_path, 200)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: no tokenizer that can be read"):
        Text(tmp_path, 257)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CallerError, match=r"needs tokenizer\.json"):
        Text(tmp_path, 257).ids("hello")
