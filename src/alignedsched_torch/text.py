"""Text to token ids and back; back also token by token, never half a character."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from alignedsched.errors import CallerError, ConfigError

from .job import Ids

BROKEN = "\ufffd"  # what decoding puts where bytes are no character, or none yet
LONGEST_TAIL = 3  # bytes of a character that is not complete


class Text:
    """The tokenizer of a model folder (``tokenizer.json``), or none: then prompts are token ids and answers too.

    Raises ConfigError naming the file where it cannot be read, or knows more tokens than the model.
    """

    def __init__(self, folder: str | Path, vocab: int) -> None:
        self.vocab = vocab
        self.tokenizer: Tokenizer | None = None
        file = Path(folder) / "tokenizer.json"
        if not file.exists():
            return
        try:
            self.tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(f"{file}: no tokenizer that can be read: {error}") from error
        known = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if known > vocab:
            raise ConfigError(f"{file}: token ids go up to {known - 1}, the model's vocabulary has {vocab}")

    def ids(self, prompt: object) -> Ids:
        """Token ids of a text, or of what claims to be token ids. Raises CallerError saying what is wrong with it."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise CallerError("a prompt of text needs tokenizer.json in the model folder; give token ids")
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                raise CallerError(f"the prompt is no text: half a surrogate pair at character {error.start}") from error
            found = self.tokenizer.encode(prompt).ids
        elif isinstance(prompt, (list, tuple, range, np.ndarray)):
            found = list(prompt)
        else:
            raise CallerError(f"a prompt is text or a list of token ids, got {type(prompt).__name__}")
        if not found:
            raise CallerError("the prompt is empty")
        for at, token in enumerate(found):
            if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
                raise CallerError(f"token {at} of the prompt must be a whole number, got {token!r}")
            if not 0 <= token < self.vocab:
                raise CallerError(
                    f"token {at} of the prompt is {token}, outside of the model's vocabulary of {self.vocab}"
                )
        return np.array(found, dtype=np.int64)

    def text(self, tokens: list[int]) -> str | None:
        """Text of tokens; None without a tokenizer."""
        return None if self.tokenizer is None else str(self.tokenizer.decode(tokens))

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self.tokenizer)


class Detokenizer:
    """One answer's text as its tokens come. What ``add`` and ``rest`` return, joined, is the text of all tokens.

    ``add`` is O(tokens since the last complete character).
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._anchor = 0  # decoding starts here: what is in front has no influence on what comes
        self._read = 0  # tokens whose text has been given whole
        self._given = 0  # characters given of the text from ``_anchor`` on

    def add(self, token: int) -> str:
        """The text that is certain now and was not before; may be empty."""
        if self._tokenizer is None:
            return ""
        self._tokens.append(token)
        text: str = self._tokenizer.decode(self._tokens[self._anchor :])
        tail = min(len(text) - len(text.rstrip(BROKEN)), LONGEST_TAIL)
        new = text[self._given : len(text) - tail]
        if tail:
            self._given = max(self._given, len(text) - tail)
            return new
        self._anchor, self._read = self._read, len(self._tokens)
        self._given = len(self._tokenizer.decode(self._tokens[self._anchor :]))
        return new

    def rest(self) -> str:
        """What is left when no more tokens come: bytes that never became a character show as U+FFFD."""
        if self._tokenizer is None:
            return ""
        return str(self._tokenizer.decode(self._tokens[self._anchor :]))[self._given :]
