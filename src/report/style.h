// The look of the page: one quiet column, tables ruled as in print (above, below the head, below).
#pragma once

namespace kla::report {

inline constexpr const char* kStyle = R"css(
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1c1c1c; font-size: 15px; line-height: 1.5; }
body { font-family: -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  "Liberation Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 24px 56px; }
h1, h2, h3 { font-weight: 600; overflow-wrap: anywhere; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 46px 0 12px; }
h3 { font-size: 15px; margin: 24px 0 6px; }
p { margin: 8px 0; max-width: 46em; }
.quiet, figcaption, .notes, summary { color: #595959; font-size: 13px; line-height: 1.45; }
.quiet { max-width: 62em; }
.caution { border-left: 3px solid #c9a227; padding: 1px 0 1px 14px; margin: 18px 0; }
.wide { overflow-x: auto; margin: 14px 0 8px; }
.figures + .wide { margin-top: 28px; }

table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums;
  border-top: 1.5px solid #1c1c1c; border-bottom: 1.5px solid #1c1c1c; }
th, td { padding: 5px 0 5px 24px; text-align: right; vertical-align: baseline;
  white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
thead th { font-weight: 600; border-bottom: 1px solid #8a8a8a; vertical-align: bottom; }
small { color: #595959; font-size: 12px; font-weight: 400; }
th small { display: block; }
td.text, th.text, td.words { text-align: left; }
td.words { white-space: normal; min-width: 14em; max-width: 20em; line-height: 1.3; }
tr.first td { border-top: 1px solid #dcdcdc; }
pre, td.code, .record { font-family: ui-monospace, "SF Mono", Menlo, Consolas,
  "Liberation Mono", monospace; font-size: 12.5px; }

.figures { display: grid; gap: 28px;
  grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); }
.whole { grid-template-columns: 1fr; }
figure { margin: 0; }
figcaption { margin-top: 6px; }
svg { display: block; max-width: 100%; height: auto; }
svg.swatch { display: inline-block; max-width: none; vertical-align: -1px; margin-right: 8px; }

.panels { display: grid; gap: 6px 12px; margin-top: 4px;
  grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }

.record { display: grid; grid-template-columns: max-content 1fr; gap: 1px 20px; margin: 6px 0; }
.record dt { color: #595959; }
.record dd { margin: 0; overflow-wrap: anywhere; }
pre { background: #f7f7f7; padding: 12px 14px; overflow-x: auto; line-height: 1.4; }
summary { cursor: pointer; }

@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  figure, tr, .caution { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; }
  details { display: none; }
}
)css";

// Also goes into figures that are exported by themselves.
inline constexpr const char* kSvgStyle = R"css(
svg text { font-size: 12px; fill: #1c1c1c; font-family: -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
svg .title { font-size: 12.5px; }
svg .tick { fill: #595959; }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .grid { stroke: #ececec; }
svg .axis { stroke: #8a8a8a; }
svg .reference { stroke: #8a8a8a; stroke-dasharray: 1 3; }
svg .leader { stroke: #c4c4c4; }
svg .curve { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
svg .thin { fill: none; stroke-width: 1; stroke-linejoin: round; opacity: .55; }
svg .pale { fill: none; stroke-width: 1; stroke-linejoin: round; opacity: .28; }
svg .band { stroke: none; opacity: .18; }
svg .whisker { stroke-width: 1.25; }
svg .zero { stroke: #595959; }
)css";

}  // namespace kla::report
