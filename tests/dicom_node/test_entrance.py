import pytest

from dicom_node.entrance import build_entrance, read_entrance
from dicom_node.errors import ConfigurationError
from dicom_node.node_settings import read_node

NODE = f"""
ae_title: NODE
data_folder: data
models_folder: models
peers:
  scanner:
    ae_title: SCANNER
    address: 10.1.2.0/24
    certificates: ["{":".join(["0A"] * 32)}", "{":".join(["B0"] * 32)}"]
    roles: [receive, notify]
  pacs:
    ae_title: PACS
    address: "fd00::1"
    host: pacs.example
    port: 104
    commitment: storage_commitment
    roles: [send]
  archive:
    dicomweb: {{url: "https://archive.example/dicom-web"}}
    roles: [send]
receiver:
  allow_plain: [10.1.0.0/16, "fd00::/64"]
  tls: {{certificate: node.pem, key: node.key, ca: authority.pem}}
  durability: strict
  storage_classes: {{image: [MRImageStorage], passed_over: [BasicTextSRStorage]}}
  limits: {{handshake: 1500 ms, idle: 7 min}}
delivery: {{first_retry: 1.25 s, give_up_after: 3 d}}
"""


def test_what_another_process_has_read_is_what_node_yaml_says(tmp_path):
    (tmp_path / "node.yaml").write_text(NODE)
    overrides = ["receiver.processes=3", "assembly.stale_association=10 s"]

    entrance = read_entrance(tmp_path, overrides)

    assert entrance == build_entrance(read_node(tmp_path, overrides))
    assert [caller.alias for caller in entrance.door.callers] == ["scanner", "pacs"]


def test_what_is_wrong_in_node_yaml_is_told_in_the_words_of_who_reads_it(tmp_path):
    (tmp_path / "node.yaml").write_text(NODE.replace("NODE", "Nöde\\").replace("104", "0"))
    with pytest.raises(ConfigurationError) as direct:
        read_node(tmp_path)

    with pytest.raises(ConfigurationError) as told:
        read_entrance(tmp_path, [])

    assert str(told.value) == str(direct.value)
