"""The admin page: where people watch the node, look at what it made, and decide.

A process of its own (`dicom-node admin`) that the node knows nothing of. Like every command it
reads the ledger and writes a person's decisions there, so that it may be stopped, or fall over,
without any effect on what is received, made and sent.

    accounts   who may log in, and what each role may do
    sessions   who is logged in, and who has guessed too often
    guard      what every request passes, and every answer carries
    story      one study in plain words
    pictures   quick looks at source, result and uncertainty
    charts     figures as inline SVG
    pages      what each address shows, by which right, and what a form does
    server     all of it built and served
"""
