package install

// Its CRDs are in its module. An import is what keeps the module in go.mod; this package is a small one.
import _ "github.com/prometheus-operator/prometheus-operator/pkg/versionutil"
