"""Sections of words, tables and figures -> Markdown and a self-contained HTML page."""

from collections.abc import Sequence
import html
import os
import re
from typing import NamedTuple


class Table(NamedTuple):
  """A table of texts.

  Attributes:
    headings: of the columns; the first column holds names, the others numbers.
    rows: of texts, as long as `headings`.
    strong: positions (row, column) to set in bold.
    anchors: rows that hold references instead of methods.
    text: whether all columns hold words.
  """

  headings: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  strong: frozenset[tuple[int, int]] = frozenset()
  anchors: frozenset[int] = frozenset()
  text: bool = False


class Figure(NamedTuple):
  """A picture and what it shows."""

  svg: str
  caption: str


class Section(NamedTuple):
  """A heading over blocks: a str is a paragraph, a list of str a bullet list; tables; figures."""

  title: str
  blocks: tuple[str | list | Table | Figure, ...]


def save(directory: str | os.PathLike, title: str, sections: Sequence[Section]) -> tuple[str, str]:
  """Writes `report.md` and `report.html` atomically, and returns their paths."""
  paths = []
  for name, text in (('report.md', to_markdown(title, sections, figures_in='report.html')),
                     ('report.html', to_html(title, sections))):
    path = os.path.join(directory, name)
    with open(path + '.tmp', 'w', encoding='utf-8') as file:
      file.write(text)
    os.replace(path + '.tmp', path)
    paths.append(path)
  return tuple(paths)


def to_markdown(title: str, sections: Sequence[Section], figures_in: str = '') -> str:
  """Sections in Markdown; figures are links to the file that has them."""
  parts = [f'# {title}\n']
  for section in sections:
    if section.title:
      parts.append(f'## {section.title}\n')
    for block in section.blocks:
      if isinstance(block, Table):
        parts.append(table_markdown(block))
      elif isinstance(block, Figure):
        parts.append(f'*Figure in [{figures_in}]({figures_in}): {block.caption}*\n')
      elif isinstance(block, list):
        parts.append(''.join(f'- {item}\n' for item in block))
      else:
        parts.append(block + '\n')
  return '\n'.join(parts)


def table_markdown(table: Table) -> str:
  """A table in Markdown."""
  def line(cells):
    return '| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in cells) + ' |'

  rule = [':--'] + ['--:' if not table.text else ':--'] * (len(table.headings) - 1)
  rows = [[f'**{cell}**' if (i, j) in table.strong else cell for j, cell in enumerate(row)]
          for i, row in enumerate(table.rows)]
  return '\n'.join([line(table.headings), line(rule), *map(line, rows)]) + '\n'


_CSS = '''
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1d1d1f;
  background: #fff; max-width: 1080px; margin: 2.2rem auto 4rem; padding: 0 1.2rem; }
h1 { font-size: 1.65rem; margin: 0 0 .8rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem;
  border-bottom: 1px solid #ddd; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; margin: .4rem 0 .7rem; width: 100%; }
th { text-align: right; vertical-align: bottom; font-weight: 600; border-bottom: 2px solid #444;
  padding: .35rem .55rem; }
td { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid #e8e8e8; padding: .3rem .55rem; }
th:first-child, td:first-child, table.words th, table.words td { text-align: left; }
td:first-child { white-space: normal; }
table.words td { white-space: normal; overflow-wrap: anywhere; }
tr.anchor { background: #f4f5f7; }
tr.best { background: #eaf5ee; }
figure { margin: 1rem 0 1.6rem; }
figure svg { width: 100%; height: auto; }
figcaption { color: #555; font-size: 13px; max-width: 60rem; }
code { background: #f1f1f3; padding: .05rem .3rem; border-radius: 3px; font-size: .92em; }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; } }
'''


def to_html(title: str, sections: Sequence[Section]) -> str:
  """Sections as one HTML page that needs no other file."""
  body = [f'<h1>{html.escape(title)}</h1>']
  pictures = 0
  for section in sections:
    if section.title:
      body.append(f'<h2>{html.escape(section.title)}</h2>')
    for block in section.blocks:
      if isinstance(block, Table):
        body.append(_html_table(block))
      elif isinstance(block, Figure):
        pictures += 1
        body.append(f'<figure role="img" aria-label="{html.escape(block.caption)}">'
                    f'{_own_ids(block.svg, pictures)}'
                    f'<figcaption>{_inline(block.caption)}</figcaption></figure>')
      elif isinstance(block, list):
        body.append('<ul>' + ''.join(f'<li>{_inline(item)}</li>' for item in block) + '</ul>')
      else:
        body.append(f'<p>{_inline(block)}</p>')
  return ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
          '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
          f'<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n'
          + '\n'.join(body) + '\n</body>\n</html>\n')


def _html_table(table: Table) -> str:
  def row(cells, tag, index=None):
    parts = []
    for column, cell in enumerate(cells):
      text = _inline(cell)
      parts.append(f'<{tag}>' + (f'<b>{text}</b>' if (index, column) in table.strong else text)
                   + f'</{tag}>')
    kind = ' class="anchor"' if index in table.anchors else ''
    if (index, 0) in table.strong:
      kind = ' class="best"'
    return f'<tr{kind}>' + ''.join(parts) + '</tr>'

  body = '\n'.join(row(cells, 'td', index) for index, cells in enumerate(table.rows))
  return (f'<div class="scroll"><table{" class=words" if table.text else ""}>\n<thead>'
          f'{row(table.headings, "th")}</thead>\n<tbody>\n{body}\n</tbody></table></div>')


def _inline(text: str) -> str:
  """Escapes a text and sets `code` and **bold**."""
  text = html.escape(text, quote=False)
  return re.sub(r'\*\*(.+?)\*\*', r'<b>\1</b>', re.sub(r'`(.+?)`', r'<code>\1</code>', text))


def _own_ids(svg: str, number: int) -> str:
  """Makes the ids of one figure differ from those of the others on the page."""
  return re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>f{number}-', svg)
