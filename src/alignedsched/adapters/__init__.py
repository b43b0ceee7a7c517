"""Our policies in engines that exist: view builders and id maps, no copy of engine code.

Nothing is imported here: each adapter needs its engine, and ``hooks``, ``step_log`` and ``versions`` need none.
"""
