"""Sections -> Markdown and HTML."""

import html.parser
import os
import tempfile

from absl.testing import absltest

from unlearn_jax.evals import render

SVG = '<svg><defs><path id="a"/></defs><use href="#a"/><g clip-path="url(#a)"/></svg>'
TABLE = render.Table(('Method', 'a|b'), (('x <y>', '1.0'), ('z', '2.0')),
                     strong=frozenset({(1, 0), (1, 1)}), anchors=frozenset({0}))
SECTIONS = [render.Section('', ('Words with `code`, **weight** and <angles> & more.',)),
            render.Section('Numbers', (TABLE, ['one', 'two'])),
            render.Section('Pictures', (render.Figure(SVG, 'First.'),
                                        render.Figure(SVG, 'Second.')))]


class Checker(html.parser.HTMLParser):
  """Fails on tags that do not nest; collects ids and texts."""

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.tags, self.text = [], [], [], ''
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.ids += [value for name, value in attrs if name == 'id']
    if tag != 'meta':
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.ids += [value for name, value in attrs if name == 'id']

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


class RenderTest(absltest.TestCase):

  def test_html_is_well_formed_and_escaped(self):
    text = render.to_html('A <title>', SECTIONS)
    page = Checker(text)
    self.assertIn('Words with code, weight and <angles> & more.', page.text)
    self.assertEqual(page.tags.count('tr'), 3)
    self.assertIn('<tr class="anchor"><td>x &lt;y&gt;</td>', text)
    self.assertIn('<tr class="best"><td><b>z</b></td><td><b>2.0</b></td>', text)

  def test_figures_do_not_share_ids(self):
    text = render.to_html('t', SECTIONS)
    ids = Checker(text).ids
    self.assertLen(ids, 2)
    self.assertLen(set(ids), 2)
    for name in ids:
      self.assertIn(f'href="#{name}"', text)
      self.assertIn(f'url(#{name})', text)

  def test_markdown(self):
    text = render.to_markdown('Title', SECTIONS, figures_in='report.html')
    self.assertStartsWith(text, '# Title\n')
    self.assertIn('| Method | a\\|b |\n| :-- | --: |\n| x <y> | 1.0 |\n| **z** | **2.0** |\n', text)
    self.assertIn('- one\n- two\n', text)
    self.assertIn('*Figure in [report.html](report.html): First.*', text)
    self.assertNotIn('<svg', text)

  def test_save_leaves_two_files(self):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    paths = render.save(directory, 't', SECTIONS)
    self.assertCountEqual(os.listdir(directory), ['report.md', 'report.html'])
    self.assertEqual([os.path.basename(path) for path in paths], ['report.md', 'report.html'])


if __name__ == '__main__':
  absltest.main()
