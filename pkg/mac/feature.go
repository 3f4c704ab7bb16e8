package mac

import "fmt"

// MinABI is the least Landlock version with which a service can work: Linux 5.19.
const MinABI = 2

// Feature is something that Landlock learned at some version.
type Feature struct {
	Name   string // for people and reports, such as tcp-connect
	ABI    int    // the first version that has it
	Kernel string // the first kernel that has it
}

func (f Feature) String() string { return fmt.Sprintf("%s (Linux %s)", f.Name, f.Kernel) }

// The features that this package uses, landlock(7).
var (
	featureFiles    = Feature{"files", 1, "5.13"}
	featureRefer    = Feature{"refer", 2, "5.19"}
	featureTruncate = Feature{"truncate", 3, "6.2"}
	featureBind     = Feature{"tcp-bind", 4, "6.7"}
	featureConnect  = Feature{"tcp-connect", 4, "6.7"}
	featureIoctl    = Feature{"ioctl-dev", 5, "6.10"}
	featureSignals  = Feature{"signals", 6, "6.12"}
	featureAbstract = Feature{"abstract-sockets", 6, "6.12"}
	featureAudit    = Feature{"audit-log", 7, "6.15"}
)
