"""A third collection of wordings, written after the miner was finished and run once: prompts as frameworks lay them out.

The layouts are those of public frameworks and habits: fields between `[[ ## name ## ]]` marks, question answering over
retrieved context between dashed lines, extraction with a persona and rules, XML sections, a chat transcript, e-mail
with headers, case and instruction in turn, templates in German and French.
"""

from __future__ import annotations

from benchmarks.traffic.wording import Frame, Use

UNSEEN: dict[str, tuple[str, str]] = {
    "hosted_banking77": (
        "Given the text of a customer, produce its intent. Intents: {commas}",
        "Given the text of a customer of the bank, produce its intent (one of the list). Intents: {commas}",
    ),
    "hosted_invoices": (
        "You are an expert extraction algorithm. Only extract relevant information from the text. If you do not know the "
        "value of an attribute asked to extract, return null for the attribute's value. Attributes: vendor_name, "
        "invoice_number, invoice_date, due_date, currency, total_amount, tax_amount, po_number.",
        "You are an expert extraction algorithm. Only extract what the text states. If an attribute is not stated return "
        "null. Attributes: vendor_name, invoice_number, invoice_date, due_date, currency, total_amount, tax_amount, "
        "po_number.",
    ),
    "banking_card": (
        "Kennzeichne die Nachricht mit card, wenn es um eine Karte geht, sonst mit other.",
        "Kennzeichne die Kundennachricht mit card, wenn sie von einer Karte handelt, andernfalls mit other.",
    ),
    "clinc_domain": (
        "Pick the skill that should handle what the user said.\nSkills:\n{lines}",
        "Pick the one skill that should handle what the user said, and nothing else.\nSkills:\n{lines}",
    ),
    "clinc_intent": (
        "Classify the utterance.\n\nCategories:\n{lines}\n\nReturn the category only.",
        "Classify the utterance of the driver.\n\nCategories:\n{lines}\n\nReturn the category only.",
    ),
    "snips": (
        "Transforme la commande en JSON (intent et entités, valeurs telles quelles).",
        "Transforme la commande vocale en JSON avec intent et toutes les entités; ne traduis pas les valeurs.",
    ),
    "restaurant8k": (
        "Read the last utterance of the guest and fill the form: date, time, people, first_name, last_name.",
        "Read the guest's last utterance. Fill the form with date, time, people, first_name and last_name, else null.",
    ),
    "e2e_restaurants": (
        "Produce the record for this text with keys name, eatType, food, priceRange, customer_rating, area, "
        "familyFriendly, near.",
        "Produce the database record for this text. Keys: name, eatType, food, priceRange, customer_rating, area, "
        "familyFriendly, near.",
    ),
    "pubmedqa": (
        "Given the context information and not prior knowledge, answer the query with yes, no or maybe.",
        "Given the context information and no prior knowledge, answer the query: yes, no or maybe.",
    ),
    "xquad": (
        "Use the following pieces of context to answer the question at the end. If you don't know the answer, just say "
        "that you don't know, don't try to make up an answer.",
        "Use the following piece of context to answer the question at the end, in as few words as possible.",
    ),
    "medquad": (
        "You answer on the health pages of a public service. Be accurate and calm.",
        "You answer on the health pages of a public service. Be accurate, calm and complete.",
    ),
}


def _fields(names: tuple[str, ...], form: str, gap: str) -> str:
    return gap.join(form.format(name=name, upper=name.upper(), slot=f"<<{name}>>") for name in names)


UNSEEN_FRAMES: dict[str, Frame] = {
    "bracket_marks": lambda i, f, s: [
        (
            "system",
            "Your input fields are:\n"
            + "\n".join(f"{k}. `{name}` (str)" for k, name in enumerate(f, 1))
            + "\nYour output fields are:\n1. `answer` (str)\nAll interactions will be structured in the following way, with "
            + "the appropriate values filled in.\n\n"
            + "\n\n".join(f"[[ ## {name} ## ]]\n{{{name}}}" for name in (*f, "answer", "completed"))
            + f"\nIn adhering to this structure, your objective is: \n        {i}",
        ),
        (
            "user",
            _fields(f, "[[ ## {name} ## ]]\n{slot}", "\n\n")
            + "\n\nRespond with the corresponding output fields, starting with the field `[[ ## answer ## ]]`, and then "
            + "ending with the marker for `[[ ## completed ## ]]`.",
        ),
    ],
    "dashed_context": lambda i, f, s: [
        (
            "user",
            "Context information is below.\n---------------------\n"
            + _fields(f[1:] or f, "{slot}", "\n")
            + f"\n---------------------\n{i}\n"
            + ("Query: <<question>>\n" if len(f) > 1 else "")
            + "Answer: ",
        )
    ],
    "context_then_question": lambda i, f, s: [
        ("user", f"{i}\n\n{_fields(f[::-1], '{slot}', chr(10) * 2 + 'Question: ')}\nHelpful Answer:")
    ],
    "xml_sections": lambda i, f, s: [
        (
            "user",
            f"<instructions>\n{i}\n</instructions>\n<metadata>\n  <received>{'<<date>>'}</received>\n"
            + f"  <source>{'<<channel>>'}</source>\n</metadata>\n{_fields(f, '<{name}>{slot}</{name}>', chr(10))}",
        )
    ],
    "transcript": lambda i, f, s: [
        ("system", i),
        ("user", f"Transcript:\nAgent: Hello, how can I help you today?\nGuest: {_fields(f, '{slot}', ' ')}\nForm:"),
    ],
    "mail": lambda i, f, s: [
        ("system", f"{i} Today's date is <<date>>."),
        ("user", f"From: customer-<<ticket>>\nChannel: <<channel>>\n\n{_fields(f, '{slot}', chr(10))}"),
    ],
    "german": lambda i, f, s: [("user", f"{i}\n\nNachricht: „{_fields(f, '{slot}', ' ')}“\nAntwort:")],
    "french": lambda i, f, s: [("system", i), ("user", f"Commande : {_fields(f, '{slot}', ' ')}")],
    "acknowledged": lambda i, f, s: [
        ("user", f"{i}\n\nReply OK if you understand."),
        ("assistant", "OK"),
        ("user", _fields(f, "{slot}", "\n\n")),
    ],
    "arrow_shots": lambda i, f, s: [
        ("user", f"{i}\n###\n" + "".join(f"{c} -> {a}\n" for c, a in s[:4]) + _fields(f, "{slot}", "\n") + " ->"),
    ],
    "plain": lambda i, f, s: [("system", i), ("user", _fields(f, "{slot}", "\n\n"))],
    "versioned": lambda i, f, s: [
        ("system", f"prompt v3.<<tier>> (<<uuid>>)\n{i}"),
        ("user", _fields(f, "{upper}\n{slot}", "\n\n")),
    ],
}
UNSEEN_USES = (
    Use("hosted_banking77", "bracket_marks", 1, "label", until=0.7, weight=3),
    Use("hosted_banking77", "bracket_marks", 2, "label", since=0.7, weight=3),
    Use("hosted_banking77", "mail", 1, "label"),
    Use("hosted_banking77", "arrow_shots", 1, "label"),
    Use("hosted_invoices", "plain", 1, "json", until=0.5, weight=2),
    Use("hosted_invoices", "plain", 2, "json", since=0.5, weight=2),
    Use("hosted_invoices", "xml_sections", 1, "json"),
    Use("hosted_invoices", "acknowledged", 2, "json"),
    Use("banking_card", "german", 1, "label", until=0.55),
    Use("banking_card", "german", 2, "label", since=0.55),
    Use("banking_card", "mail", 1, "frame"),
    Use("banking_card", "acknowledged", 2, "label"),
    Use("clinc_domain", "versioned", 1, "json"),
    Use("clinc_domain", "arrow_shots", 1, "label"),
    Use("clinc_domain", "plain", 1, "tool", until=0.4),
    Use("clinc_domain", "plain", 2, "tool", since=0.4),
    Use("clinc_intent", "acknowledged", 1, "label", until=0.5),
    Use("clinc_intent", "acknowledged", 2, "label", since=0.5),
    Use("clinc_intent", "bracket_marks", 1, "frame"),
    Use("clinc_intent", "dashed_context", 2, "label"),
    Use("snips", "french", 1, "json", until=0.45),
    Use("snips", "french", 2, "json", since=0.45),
    Use("snips", "versioned", 1, "compact"),
    Use("snips", "arrow_shots", 2, "compact"),
    Use("restaurant8k", "transcript", 1, "json", until=0.6),
    Use("restaurant8k", "transcript", 2, "json", since=0.6),
    Use("restaurant8k", "xml_sections", 1, "fence"),
    Use("restaurant8k", "mail", 2, "tool"),
    Use("e2e_restaurants", "plain", 1, "indent", until=0.5),
    Use("e2e_restaurants", "plain", 2, "indent", since=0.5),
    Use("e2e_restaurants", "dashed_context", 1, "json"),
    Use("e2e_restaurants", "bracket_marks", 2, "json"),
    Use("pubmedqa", "dashed_context", 1, "label", weight=2),
    Use("pubmedqa", "bracket_marks", 2, "label"),
    Use("pubmedqa", "xml_sections", 1, "json"),
    Use("xquad", "context_then_question", 1, "text"),
    Use("xquad", "bracket_marks", 2, "text"),
    Use("xquad", "plain", 1, "json"),
    Use("medquad", "plain", 1, "text", until=0.5),
    Use("medquad", "plain", 2, "text", since=0.5),
    Use("medquad", "context_then_question", 1, "text"),
)
