"""How the HTML page looks, by light and by dark."""

STYLE = """\
:root {
  --paper: #ffffff; --ink: #1c2024; --soft: #5b636b; --rule: #e3e6e9; --panel: #f7f8f9;
  --better: #d3efdc; --better-ink: #0b5c2b; --worse: #fbd9d5; --worse-ink: #9c1c10;
  --p0: #1f6fb4; --p1: #d4690a; --p2: #7a4cc4; --p3: #13867a;
  --p4: #c2387f; --p5: #8a7000; --p6: #4a9ed6; --p7: #6b6f76;
  --rest: #c3d2de; --iteration: #e8a317; --batch: #d1495b; --copy: #0e8f8a; --none: #eceff1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --ink: #e6e9ec; --soft: #9aa4ad; --rule: #2c3238; --panel: #1c2024;
    --better: #12402a; --better-ink: #8fe3b0; --worse: #4e1d1a; --worse-ink: #ffaea3;
    --p0: #5aa9ea; --p1: #ff9d4d; --p2: #b294f5; --p3: #46c7b8;
    --p4: #f083b6; --p5: #d8bd3a; --p6: #9bd1f7; --p7: #a9afb6;
    --rest: #3d4f5d; --iteration: #d99a1b; --batch: #d6566a; --copy: #35c2bb; --none: #23282d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 34px 0 2px; }
header p { margin: 2px 0; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: 13.5px; margin: 2px 0 12px; max-width: 78ch; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; margin: 10px 0; }
nav.legend {
  position: sticky; top: 0; z-index: 1; padding: 8px 0;
  background: var(--paper); border-bottom: 1px solid var(--rule); font-weight: 600;
}
.legend span { overflow-wrap: anywhere; }
.chip {
  display: inline-block; width: 11px; height: 11px;
  border-radius: 3px; margin-right: 6px; background: var(--c);
}
.chip.dashed { background: repeating-linear-gradient(90deg, var(--c) 0 3px, transparent 3px 5px); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td {
  padding: 3px 10px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); font-weight: 400;
}
th:first-child { text-align: left; }
tr:first-child th { font-weight: 600; border-bottom-color: var(--soft); }
.figures tr > :first-child { position: sticky; left: 0; background: var(--paper); }
td.ratio { text-align: left; }
td.better { background: var(--better); color: var(--better-ink); }
td.worse { background: var(--worse); color: var(--worse-ink); }
td.same { color: var(--soft); }
.bar {
  display: grid; grid-template-columns: 11em minmax(120px, 1fr) minmax(0, 25em); gap: 2px 12px;
  align-items: center; margin: 5px 0; font-size: 14px;
}
.bar label { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bar > div {
  position: relative; height: 16px; background: var(--none);
  border-radius: 3px; overflow: hidden; display: flex;
}
.bar b { display: block; height: 100%; background: var(--c); }
.bar s { position: absolute; top: 0; width: 2px; height: 100%; margin-left: -1px; background: var(--ink); }
.bar span { font-variant-numeric: tabular-nums; }
.grid {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr));
  gap: 14px; margin: 10px 0;
}
figure {
  margin: 0; padding: 10px 10px 4px; background: var(--panel);
  border: 1px solid var(--rule); border-radius: 6px; min-width: 0;
}
figcaption { font-weight: 600; font-size: 14px; overflow-wrap: anywhere; }
figcaption small { font-weight: 400; color: var(--soft); margin-left: 8px; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 10.5px system-ui, "Segoe UI", Roboto, sans-serif; fill: var(--soft); }
svg .rule { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.line.dashed { stroke-dasharray: 5 3; }
.band { fill: var(--c); opacity: .22; }
.dot { fill: var(--c); stroke: var(--panel); stroke-width: 1; }
.area { fill: var(--c); }
.p0 { --c: var(--p0); } .p1 { --c: var(--p1); } .p2 { --c: var(--p2); } .p3 { --c: var(--p3); }
.p4 { --c: var(--p4); } .p5 { --c: var(--p5); } .p6 { --c: var(--p6); } .p7 { --c: var(--p7); }
.rest { --c: var(--rest); } .iteration { --c: var(--iteration); } .batch { --c: var(--batch); }
.copy_stall { --c: var(--copy); } .no_work { --c: var(--none); }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; font-size: 12px; }
@media (max-width: 700px) {
  main { padding: 14px 12px 32px; }
  nav.legend { position: static; }
  .bar { grid-template-columns: 1fr; margin: 12px 0; }
}
"""
