package limits

import (
	"path/filepath"
	"strings"
)

// weighing says whether a disk's scheduler is bfq, or the cost model of version 2 is on.
func weighing(fs cgroupFiles, s CgroupSight) bool {
	disks, _ := fs.children("/sys/block") // none without a sysfs
	for _, disk := range disks {
		if text, err := fs.read("/sys/block/" + disk + "/queue/scheduler"); err == nil && strings.Contains(text, "[bfq]") {
			return true
		}
	}
	if s.V2 == nil {
		return false
	}
	text, err := fs.read(filepath.Join(s.V2.Point, "io.cost.qos")) // in the root alone
	return err == nil && strings.Contains(text, "enable=1")
}
