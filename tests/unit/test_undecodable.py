"""What could not be decoded is remembered by content, never because a disk failed, and forgotten with the decoder."""

import json
from pathlib import Path

from simpletuner.data.digests import digest_of
from simpletuner.data.undecodable import NAME, known, remember


def test_by_content_and_only_what_can_be_read(tmp_path: Path) -> None:
    picture, memory = tmp_path / "a.png", tmp_path / "memory"
    picture.write_bytes(b"half a picture")
    digest = digest_of(picture)
    assert known(memory) == {}
    remember(memory, [(tmp_path / "gone.png", "0" * 64, "x"), (picture, "1" * 64, "it was another file then")])
    assert known(memory) == {}
    remember(memory, [(picture, digest, "it is damaged")])
    picture.write_bytes(b"another half")
    remember(memory, [(picture, digest_of(picture), "it is damaged too")])
    assert known(memory) == {digest: "it is damaged", digest_of(picture): "it is damaged too"}
    content = json.loads((memory / NAME).read_text())
    (memory / NAME).write_text(json.dumps(content | {"decoder": "an older one"}))
    assert known(memory) == {}
    for nonsense in ("", "[]", '{"decoder": 3}', "{"):
        (memory / NAME).write_text(nonsense)
        assert known(memory) == {}
