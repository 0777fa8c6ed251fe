"""The environment names the machine's parts and versions, and nothing that tells whose machine it is."""

import getpass
import json
import os
import platform
import socket
from pathlib import Path

import torch

import secateur
from secateur.measure import environment


def test_it_describes_what_a_reader_needs():
    record = environment.describe()
    assert record["threads"] == torch.get_num_threads()
    assert record["python"] == platform.python_version()
    assert record["secateur"] == secateur.__version__
    assert record["torch"].startswith(torch.__version__.split("+")[0])
    assert record["cpu"]
    assert record["logical_cores"] >= 1
    assert record["memory_gb"] > 0
    json.dumps(record)


def test_it_tells_no_names_and_no_paths():
    text = json.dumps(environment.describe())
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert os.getcwd() not in text
    user = getpass.getuser()
    assert user == "root" or f'"{user}"' not in text


def test_the_commit_is_of_secateurs_own_tree(monkeypatch, tmp_path):
    own = Path(secateur.__file__).resolve().parents[2]
    assert ("commit" in environment.describe()) == (own / ".git").exists()
    # Installed into an environment inside someone else's repository: that repository's commit is not ours.
    (tmp_path / ".git").mkdir()
    installed = tmp_path / "lib" / "site-packages" / "secateur" / "__init__.py"
    monkeypatch.setattr(secateur, "__file__", str(installed))
    assert "commit" not in environment.describe()
