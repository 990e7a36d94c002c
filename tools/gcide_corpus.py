#!/usr/bin/env python3
"""Makes the quickstart corpus: Webster's dictionary (Debian package dict-gcide) as plain English.

    apt-get download dict-gcide && dpkg-deb -x dict-gcide_*.deb unpacked    (nothing is installed)
    tools/gcide_corpus.py unpacked/usr/share/dictd/gcide.dict.dz data/corpus/gcide/gcide.jsonl

Consecutive entries are joined to documents of about 4 kB, because single entries average 90 tokens.
data/README.md says what the cleaning does. Needs python3 alone; the output depends on the input
only.
"""
import gzip
import json
import os
import re
import sys
import unicodedata
import zlib

DOCUMENT_BYTES = 4096

SOURCE_MARK = re.compile(r"\[(?:[^\]\[]*\b(?:Webster|WordNet|PJC|Century Dict)\b[^\]\[]*)\]")
PRONUNCIATION = re.compile(r"\s*\\[^\\]*\\")
# The dictionary's spelling of accents: the mark stands before or behind the letter, or is named.
COMBINING = {"'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "=": "\u0304",
             "-": "\u0304", "~": "\u0303", ",": "\u0327", ".": "\u0307"}
COMBINING_BEHIND = {"^": "\u0306", "mac": "\u0304", "um": "\u0308"}
MARK_BEFORE = re.compile(r"\[(['`^\"=~,.-])([A-Za-z])\]")
MARK_BEHIND = re.compile(r"\[([A-Za-z])(\^|mac|um)\]")
NAMED = {"[ae]": "æ", "[AE]": "Æ", "[oe]": "œ", "[OE]": "Œ", "[eth]": "ð", "[thorn]": "þ",
         "[deg]": "°", "[root]": "√"}
REFERENCE = re.compile(r"\{([^{}]*)\}")
SENSE_NUMBER = re.compile(r"\[\d+[a-z]?\](?=\})|(?<=\})\[\d+[a-z]?\]")  # {aplasia[2]}
LOST_GREEK = re.compile(r"\[[^\[\]]*\?[^\[\]]*\]")  # etymologies whose letters did not survive
SPACES = re.compile(r"\s+")


def fail(message, remedy):
    print(f"error: {message}\n  -> {remedy}", file=sys.stderr)
    sys.exit(3)


def read_dictionary(path):
    """The dictionary's text. A dictzip file is gzip; a few quotes in it are Windows characters."""
    try:
        with gzip.open(path) as file:
            return file.read().decode("cp1252")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        fail(f"cannot read the dictionary '{path}': {error}",
             "fetch it again: apt-get download dict-gcide && dpkg-deb -x dict-gcide_*.deb unpacked")


def entries(text):
    """An entry starts, after an empty line, with its word and pronunciation: Dog \\Dog\\, n."""
    lines = text.split("\n")
    first = next(i for i, line in enumerate(lines) if "\\" in line)  # behind the preface
    entry = [lines[first]]
    for previous, line in zip(lines[first:], lines[first + 1:]):
        if not previous.strip() and line and not line[0].isspace():
            yield entry
            entry = []
        entry.append(line)
    yield entry


def restore_letters(text):
    for written, letter in NAMED.items():
        text = text.replace(written, letter)
    text = MARK_BEFORE.sub(lambda m: m.group(2) + COMBINING[m.group(1)], text)
    text = MARK_BEHIND.sub(lambda m: m.group(1) + COMBINING_BEHIND[m.group(2)], text)
    return unicodedata.normalize("NFC", text)


def clean_paragraph(lines):
    text = SPACES.sub(" ", " ".join(lines)).strip()
    text = SOURCE_MARK.sub("", text)
    text = restore_letters(PRONUNCIATION.sub("", text))
    text = SENSE_NUMBER.sub("", text)
    text = REFERENCE.sub(lambda m: re.sub(r'[*"`|]', "", m.group(1)), text)  # no stress marks
    text = LOST_GREEK.sub("", text)
    return SPACES.sub(" ", text).strip()


def clean_entry(lines):
    """One paragraph a line; the paragraphs of an entry are separated by empty lines."""
    paragraphs, current = [], []
    for line in lines + [""]:
        if line.strip():
            current.append(line)
        elif current:
            paragraphs.append(clean_paragraph(current))
            current = []
    return "\n".join(p for p in paragraphs if p)


def documents(text):
    joined = []
    size = 0
    for lines in entries(text):
        entry = clean_entry(lines)
        if not entry:
            continue
        joined.append(entry)
        size += len(entry.encode()) + 2
        if size >= DOCUMENT_BYTES:
            yield "\n\n".join(joined)
            joined, size = [], 0
    if joined:
        yield "\n\n".join(joined)


def main():
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    source, target = sys.argv[1:]
    text = read_dictionary(source)
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    count = size = 0
    with open(target + ".tmp", "w", encoding="utf-8") as out:
        for document in documents(text):
            out.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
            count += 1
            size += len(document.encode())
    os.replace(target + ".tmp", target)
    print(f"{target}: {count} documents, {size / 1e6:.1f} MB of text")


if __name__ == "__main__":
    main()
