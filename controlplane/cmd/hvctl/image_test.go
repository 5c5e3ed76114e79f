package main

import (
	"context"
	"testing"

	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func rbd(path string) *debvisorv1.DatasetRef {
	ref := zfs("", path)
	ref.Backend = debvisorv1.StorageBackend_BACKEND_RBD
	return ref
}

func madeTemplates() []*debvisorv1.Snapshot {
	return []*debvisorv1.Snapshot{
		{Ref: &debvisorv1.SnapshotRef{Dataset: rbd("vms/base"), SnapshotName: "t1"}, CreatedAt: madeTime(0), Label: "v1", OperationId: "op-t", ReferencedBytes: 2 << 30, Clones: []string{"vms/ns/web"}, Template: true, Guid: "4"},
		{Ref: &debvisorv1.SnapshotRef{Dataset: rbd("vms/base"), SnapshotName: "dv-9"}, CreatedAt: madeTime(60), OperationId: "op-s", ReferencedBytes: 2 << 30, Guid: "5"},
	}
}

func knownImage(ref *debvisorv1.DatasetRef) error {
	switch datasetName(ref) {
	case "rbd:vms/base", "rbd:vms/ns/web", "rbd:fast/new":
		return nil
	}
	return errdefs.New(errdefs.NotFound, "DATASET_NOT_FOUND", "no dataset or image %q of backend rbd", ref.GetName())
}

func (f *fakeStorage) CreateRbdTemplateSnapshot(ctx context.Context, req *debvisorv1.RbdTemplateRequest) (*debvisorv1.SnapshotStatus, error) {
	if err := knownImage(req.GetImage()); err != nil {
		return nil, err
	}
	d := &debvisorv1.SnapshotDetails{Datasets: []string{"vms/base"}, Name: "t2", Label: req.GetLabel(), Backend: debvisorv1.StorageBackend_BACKEND_RBD, Template: true}
	return &debvisorv1.SnapshotStatus{}, f.begin(ctx, &debvisorv1.Operation{Id: "op-tpl", Kind: "snapshot.create", Snapshot: d}, "taking it", nil)
}

func (f *fakeStorage) cloned(ctx context.Context, id, kind, step string, d *debvisorv1.ImageDetails) error {
	return f.begin(ctx, &debvisorv1.Operation{Id: id, Kind: kind, Image: d}, step, func(op *debvisorv1.Operation) {
		if kind == "image.clone" {
			op.Image.Depth, op.Image.FlattenOperationId = 5, "op-flat"
		}
	})
}

func (f *fakeStorage) CloneRbdFromTemplate(ctx context.Context, req *debvisorv1.RbdCloneRequest) (*debvisorv1.CloneResult, error) {
	if datasetName(req.GetNewImage()) == "rbd:vms/ns/web" {
		return nil, errdefs.New(errdefs.FailedPrecondition, "IMAGE_EXISTS", "there is an image vms/ns/web already")
	}
	return &debvisorv1.CloneResult{}, f.cloned(ctx, "op-clone", "image.clone", "cloning", &debvisorv1.ImageDetails{Template: "vms/base@" + req.GetTemplateSnapshot().GetSnapshotName(), Image: "fast/new"})
}

func (f *fakeStorage) PlanClone(_ context.Context, req *debvisorv1.RbdCloneRequest) (*debvisorv1.ClonePlan, error) {
	if req.GetTemplateSnapshot().GetSnapshotName() != "t1" {
		return &debvisorv1.ClonePlan{Clone: req.GetNewImage(), Reasons: []string{"no template", "too deep"}, Depth: 9, SizeBytes: 2 << 30}, nil
	}
	return &debvisorv1.ClonePlan{Allowed: true, Clone: req.GetNewImage(), Depth: 5, SizeBytes: 2 << 30, Flattened: true}, nil
}

func (f *fakeStorage) ListImages(_ context.Context, filter *debvisorv1.ImageFilter) (*debvisorv1.ImageList, error) {
	all := []*debvisorv1.Image{
		{Ref: rbd("vms/base"), Id: "i0", SizeBytes: 2 << 30, CreatedAt: madeTime(0), Clones: []*debvisorv1.DatasetRef{rbd("vms/ns/web")}},
		{Ref: rbd("vms/ns/web"), Id: "i1", SizeBytes: 2 << 30, CreatedAt: madeTime(60), Parent: "vms/base@t1", Depth: 1, OperationId: "op-c", Vms: []string{uuidWeb}, BusyOperationId: "op-flat"},
	}
	if filter.GetParent() != nil {
		if !proto.Equal(filter.GetParent(), rbd("vms/base")) {
			return nil, errdefs.New(errdefs.Internal, "TEST", "not as the script asked: %v", filter)
		}
		return &debvisorv1.ImageList{Images: all[1:]}, nil
	}
	if filter.GetPage() == "" {
		return &debvisorv1.ImageList{Images: all[:1], NextPage: "x"}, nil
	}
	return &debvisorv1.ImageList{Images: all[1:]}, nil
}

func (f *fakeStorage) FlattenImage(ctx context.Context, ref *debvisorv1.ImageRef) (*debvisorv1.ImageResult, error) {
	if err := knownImage(ref.GetImage()); err != nil {
		return nil, err
	}
	return &debvisorv1.ImageResult{}, f.cloned(ctx, "op-flat", "image.flatten", "flattening", &debvisorv1.ImageDetails{Image: "vms/ns/web"})
}

func (f *fakeStorage) DeleteImage(ctx context.Context, ref *debvisorv1.ImageRef) (*debvisorv1.ImageResult, error) {
	if datasetName(ref.GetImage()) == "rbd:vms/base" {
		return nil, errdefs.New(errdefs.FailedPrecondition, "IMAGE_HAS_CLONES", "vms/base has clones: vms/ns/web")
	}
	return &debvisorv1.ImageResult{}, f.cloned(ctx, "op-rm", "image.delete", "removing", &debvisorv1.ImageDetails{Image: "vms/ns/web"})
}

func TestReadImages(t *testing.T) {
	for text, want := range map[string]string{
		"rbd:vms/a": ":rbd:vms/a", "vms/a": ":rbd:vms/a", "rbd:vms/ns/a": ":rbd:vms/ns/a", "rbd:n1:vms/a": "n1:rbd:vms/a",
		"rbd:vms": "", "rbd:": "", "rbd:rbd:vms/a": "", "vms": "", "rbd:/a": "",
	} {
		ref, err := readImage(text)
		if got := nodeName(ref.GetNode()) + ":" + datasetName(ref); want != "" && (err != nil || got != want) || want == "" && err == nil {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"tank/a", "n1:tank/a/b", "rbd:vms/a", "rbd:n1:vms/ns/a"} {
		if ref, err := readDataset(text); err != nil || datasetArgument(ref) != text {
			t.Errorf("%q is written %q, %v", text, datasetArgument(ref), err)
		}
	}
	if ref, err := readDataset("rbd:vms/a"); err != nil || ref.GetBackend() != debvisorv1.StorageBackend_BACKEND_RBD {
		t.Errorf("%v, %v", ref, err)
	}
}
