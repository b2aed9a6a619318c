"""The capture store: what the central party kept, on disk.

A round is committed as a whole. Its files are written to a temporary directory that is
renamed into place, and only then does the manifest, itself replaced atomically, name
the round. A reader therefore sees whole rounds only, and every file it opens is checked
against the SHA-256 in the manifest.

Parameters sent to several clients are written once per round and named by each of them:
an honest server sends everybody the same model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from fedleak.captures.layout import RunLayout, write_atomic
from fedleak.errors import CaptureError, ResourceError
from fedleak.records import Arrays, Capture, file_name, training_facts

FORMAT = 1


class CaptureStore:
    """Captures of one run, kept under its run directory.

    Args:
        root: The run directory. It need not exist yet; the first commit creates it.
    """

    def __init__(self, root: Path | str) -> None:
        self.layout = RunLayout(Path(root))

    def commit(
        self,
        round: int,
        captures: Sequence[Capture],
        *,
        absent: Sequence[str] = (),
        rejected: Mapping[str, str] | None = None,
        refused: Mapping[str, str] | None = None,
    ) -> None:
        """Write one round and make it visible.

        Args:
            round: Round number, from 1.
            captures: Usable updates of the round, in any order.
            absent: Clients that were asked and did not deliver.
            rejected: Clients whose update was refused, with the reason.
            refused: Clients that took no part of their own will, with the reason.

        Raises:
            ResourceError: The run directory cannot be written, or the round was
                committed before: captures are append-only.
        """
        self.check_new(round)
        manifest = self._read_manifest()
        folder = self.layout.round(round)
        partial = folder.with_name(folder.name + ".partial")
        clients: dict[str, Any] = {}
        try:
            # Both can be left over from a run that was killed before its manifest named them.
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            self.layout.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial.mkdir(parents=True)
            # Captures hold personal data in all but name.
            folder.parent.chmod(0o700)
            # Clients that were sent the very same arrays share them: they are hashed once.
            written: dict[int, dict[str, Any]] = {}
            for capture in sorted(captures, key=lambda capture: capture.client):
                received = self._write_arrays(partial, file_name(capture.client), capture.received)
                sent = written.get(id(capture.sent))
                if sent is None:
                    sent = written[id(capture.sent)] = self._write_sent(partial, capture.sent)
                facts = capture.disclosed
                if capture.facts is not None:
                    facts = dataclasses.asdict(capture.facts)
                clients[capture.client] = {
                    **received,
                    "sent": sent,
                    "facts": dict(facts) or None,
                    "metrics": dict(capture.metrics),
                    "seconds": capture.seconds,
                }
            partial.rename(folder)
        except OSError as error:
            raise ResourceError(f"cannot write {folder}: {error.strerror or error}") from error
        manifest["rounds"][str(round)] = {
            "committed": datetime.now(UTC).isoformat(timespec="seconds"),
            "clients": clients,
            "absent": sorted(absent),
            "rejected": dict(rejected or {}),
            "refused": dict(refused or {}),
            "metrics": {},
        }
        self._write_manifest(manifest)

    def check_new(self, round: int) -> None:
        """Refuse a round that was committed before.

        Raises:
            ResourceError: It was: captures are append-only.
        """
        if round in self.rounds():
            raise ResourceError(
                f"round {round} is in {self.layout.manifest.resolve()} already; "
                "captures are append-only, use a new run directory"
            )

    def record_metrics(self, round: int, metrics: Mapping[str, float]) -> None:
        """Add what the central party measured after a committed round (accuracy, loss)."""
        manifest = self._read_manifest()
        manifest["rounds"][str(round)]["metrics"].update(metrics)
        self._write_manifest(manifest)

    def rounds(self) -> list[int]:
        """Committed rounds, ascending."""
        return sorted(int(number) for number in self._read_manifest()["rounds"])

    def clients(self, round: int) -> list[str]:
        """Clients captured in a committed round, ascending."""
        return sorted(self._round(round)["clients"])

    def load(self, round: int, client: str) -> Capture:
        """Read one capture and check it against the manifest.

        Raises:
            CaptureError: The file is missing, cut short or altered; names the file.
        """
        entry = self._round(round)["clients"].get(client)
        if entry is None:
            raise CaptureError(f"{self.layout.manifest}: no {client} in round {round}")
        disclosed = entry["facts"] or {}
        facts = training_facts(disclosed)
        return Capture(
            round=round,
            client=client,
            sent=self._read_arrays(entry["sent"]),
            received=self._read_arrays(entry),
            facts=facts,
            disclosed={} if facts else disclosed,
            metrics=entry.get("metrics", {}),
            seconds=entry.get("seconds"),
        )

    def _write_arrays(self, folder: Path, name: str, arrays: Arrays) -> dict[str, Any]:
        content = _serialised(arrays)
        return self._write(folder, name, content, hashlib.sha256(content).hexdigest())

    def _write_sent(self, folder: Path, arrays: Arrays) -> dict[str, Any]:
        """Named by content: equal parameters are one file."""
        content = _serialised(arrays)
        digest = hashlib.sha256(content).hexdigest()
        return self._write(folder, f"sent-{digest[:12]}", content, digest)

    def _write(self, folder: Path, name: str, content: bytes, digest: str) -> dict[str, Any]:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            path.write_bytes(content)
        final = folder.name.removesuffix(".partial")
        return {
            "file": f"captures/{final}/{path.name}",
            "sha256": digest,
            "bytes": len(content),
        }

    def _read_arrays(self, entry: Mapping[str, Any]) -> Arrays:
        path = self.layout.root / entry["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CaptureError(f"{path}: {error.strerror or error}") from error
        if len(content) != entry["bytes"]:
            raise CaptureError(
                f"{path} has {len(content)} bytes, the manifest says {entry['bytes']}: cut short"
            )
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise CaptureError(f"{path} differs from the manifest's SHA-256: it was altered")
        try:
            return safetensors_numpy.load(content)
        except SafetensorError as error:
            raise CaptureError(f"{path} is no safetensors file: {error}") from error

    def _round(self, round: int) -> dict[str, Any]:
        rounds: dict[str, dict[str, Any]] = self._read_manifest()["rounds"]
        if str(round) not in rounds:
            known = ", ".join(rounds) or "none"
            raise CaptureError(f"{self.layout.manifest}: no round {round} (committed: {known})")
        return rounds[str(round)]

    def _read_manifest(self) -> dict[str, Any]:
        path = self.layout.manifest
        try:
            manifest: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {"format": FORMAT, "rounds": {}}
        except (OSError, ValueError) as error:
            raise CaptureError(f"{path} cannot be read: {error}") from error
        if manifest.get("format") != FORMAT:
            raise CaptureError(
                f"{path} has format {manifest.get('format')!r}; this FedLeak reads {FORMAT}"
            )
        return manifest

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_atomic(self.layout.manifest, json.dumps(manifest, indent=1).encode())


def _serialised(arrays: Arrays) -> bytes:
    return safetensors_numpy.save({key: np.asarray(a, order="C") for key, a in arrays.items()})
