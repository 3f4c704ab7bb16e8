// Package reach answers "who reaches whom" for the tests and the demo: Parse reads the expected matrix, Measure probes every
// pair of hosts with every probe over both families, and Compare lists the cells that differ. None of these asks pghardend;
// Explain does, and Disagree compares its answers with what was measured.
package reach
