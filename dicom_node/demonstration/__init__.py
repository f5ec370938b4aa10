"""Show one study on its whole way: PACS, node, synthesis, and back, on this machine alone.

`make demo` calls `python -m dicom_node.demonstration [STUDY]`. Read in the order of events:
`studies` (what is sent, what is held back), `pacs` (who receives), `walk` (start, send, wait,
stop), `findings` (what came of it, as one record), `pictures` and `page` (what a person sees).
"""
