"""Kernels in Triton: decode attention whose work is shared equally, rope with the KV write, moves of pages.

``plan`` (numpy alone) says who does what; ``decode``, ``write`` and ``pages`` launch; ``device`` is what runs;
``build`` compiles it without a GPU and says what it needs; ``attention`` puts it behind the decoder's one interface.
All but ``plan`` need the extra ``alignedsched[kernels]``; without a GPU they run in Triton's interpreter, where
``TRITON_INTERPRET=1`` is set before the first import, slowly and only to be tested.
"""

from __future__ import annotations
