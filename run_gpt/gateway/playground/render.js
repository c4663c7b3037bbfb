// A model's markdown as safe DOM: no HTML of its own, no images, links to the web only, code in colours.

const MOST_HIGHLIGHTED = 50_000; // characters of one block; beyond that colours would make typing stutter
const TAGS = "p br hr strong em s a code pre blockquote ul ol li h4 h5 h6 table thead tbody tr th td span div".split(" ");
const CLEAN = { ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ["href", "class", "start"], RETURN_DOM_FRAGMENT: true };

const md = window.markdownit({ html: false, linkify: true, breaks: false });
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
md.validateLink = (url) => /^(https?:\/\/|mailto:)/i.test(url.trim());

const { rules } = md.renderer;
const escape = md.utils.escapeHtml;

// An image would be a request to another server, so it becomes a link.
rules.image = (tokens, i) => {
  const url = tokens[i].attrGet("src");
  return `<a href="${escape(url)}">${escape(tokens[i].content || url)}</a>`;
};
rules.fence = (tokens, i) => codeBlock(tokens[i].content, tokens[i].info.trim().split(/\s/)[0]);
rules.code_block = (tokens, i) => codeBlock(tokens[i].content, "");
// The page has its own headings down to h3.
rules.heading_open = (tokens, i) => `<h${level(tokens[i])}>`;
rules.heading_close = (tokens, i) => `</h${level(tokens[i])}>`;
// markdown-it aligns cells by style attributes, which the page's policy forbids.
rules.th_open = (tokens, i) => cell("th", tokens[i]);
rules.td_open = (tokens, i) => cell("td", tokens[i]);
rules.table_open = () => '<div class="table"><table>';
rules.table_close = () => "</table></div>";

function level(token) {
  return Math.min(Number(token.tag.slice(1)) + 3, 6);
}

function cell(tag, token) {
  const align = /(right|center)/.exec(token.attrGet("style") ?? "");
  return align ? `<${tag} class="${align[1]}">` : `<${tag}>`;
}

function codeBlock(code, info) {
  const language = window.hljs.getLanguage(info) ? info : null;
  const html =
    language && code.length <= MOST_HIGHLIGHTED
      ? window.hljs.highlight(code, { language, ignoreIllegals: true }).value
      : escape(code);
  return `<div class="code"><div class="code-bar"><span>${escape(info || "text")}</span></div><pre><code>${html}</code></pre></div>`;
}

/** Shows markdown in an element; called again with more text, it renders only the blocks that changed. */
export class Markdown {
  /** `decorate(element)` is called with each block that was made. */
  constructor(element, decorate) {
    this.element = element;
    this.decorate = decorate;
    this.keys = [];
  }

  show(markdown) {
    const text = markdown.replace(/\r\n?/g, "\n"); // as markdown-it counts lines
    const env = {};
    const blocks = split(md.parse(text, env));
    const lines = text.split("\n");
    const links = JSON.stringify(env.references ?? {}); // a definition further down changes the blocks above it
    blocks.forEach((tokens, i) => {
      const [from, to] = tokens[0].map;
      const key = `${links}\n${lines.slice(from, to).join("\n")}`;
      if (this.keys[i] === key) return;
      this.keys[i] = key;
      this.put(i, md.renderer.render(tokens, md.options, env));
    });
    this.keys.length = blocks.length;
    while (this.element.children.length > blocks.length) this.element.lastElementChild.remove();
  }

  put(i, html) {
    const block = document.createElement("div");
    block.append(window.DOMPurify.sanitize(html, CLEAN));
    for (const link of block.querySelectorAll("a")) {
      link.target = "_blank";
      link.rel = "noopener noreferrer nofollow";
    }
    this.decorate(block);
    const old = this.element.children[i];
    if (old) old.replaceWith(block);
    else this.element.append(block);
  }
}

/** The tokens of each block that stands at the top. */
function split(tokens) {
  const blocks = [];
  let block = [];
  let depth = 0;
  for (const token of tokens) {
    block.push(token);
    depth += token.nesting;
    if (depth === 0) {
      blocks.push(block);
      block = [];
    }
  }
  return blocks;
}
